"""The choice of coefficients by what errors lose and bits cost, against the loss in float64."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from stages.cache_teacher.targets.coded import rate_distortion
from stages.cache_teacher.targets.coded.rate_distortion import METRIC_TEMPERATURES, RateDistortion
from stages.cache_teacher.targets.target_maker import IdTargets
from stages.cache_teacher.targets.teacher_head import Head

_V, _D, _P = 40, 5, 50
_PRICE = math.log(2) / 12


class Scene:
    """A head, states whose coordinates are the states themselves, and coefficients' prices."""

    def __init__(self, vocab_size: int = _V, width: int = _D, scale: float = 0.5) -> None:
        generator = torch.Generator().manual_seed(0)
        self.weight_VD = torch.randn(vocab_size, width, generator=generator) * scale
        self.states_PD = 2 * torch.randn(_P, width, generator=generator)
        self.head = Head(self.weight_VD, vocab_size)
        self.search = RateDistortion(self.head, torch.eye(width), chunk=16, compile="off")
        distances = torch.arange(-127, 128).abs()
        self.prices_LJX = (1 + 0.7 * distances).expand(1, width, -1).contiguous()

    def logits(self, states_PD: Tensor) -> IdTargets:
        return self.search.largest(states_PD, torch.zeros(len(states_PD), dtype=torch.int64))

    def find(self, prices_LJX: Tensor) -> Tensor:
        return self.search.coefficients(self.states_PD, self.logits(self.states_PD), prices_LJX)

    def costs(self, numbers_PJ: Tensor, prices_LJX: Tensor) -> Tensor:
        """½ eᵀF e + λ bits in float64, of F over the whole vocabulary, in the cheapest class,
        [P]."""
        errors_PJ = (numbers_PJ - self.states_PD).double()
        weight_VD = self.weight_VD.double()
        costs_P = torch.zeros(len(errors_PJ), dtype=torch.float64)
        for temperature in METRIC_TEMPERATURES:
            p_PV = torch.softmax(self.states_PD.double() @ weight_VD.T / temperature, 1)
            moved_PV = errors_PJ @ weight_VD.T / temperature
            mean_P = (p_PV * moved_PV).sum(1)
            variance_P = (p_PV * moved_PV.square()).sum(1) - mean_P.square()
            costs_P += variance_P / 2 / len(METRIC_TEMPERATURES)
        index_PJ = numbers_PJ.long() + prices_LJX.shape[2] // 2
        components_J = torch.arange(prices_LJX.shape[1])
        bits_LP = prices_LJX[:, components_J, index_PJ].double().sum(2)
        return costs_P + _PRICE * bits_LP.amin(0)


@pytest.fixture(autouse=True)
def no_damping(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every id is kept here, so that F is exact."""
    monkeypatch.setattr(rate_distortion, "_LEAST_TAIL", 0.0)


def test_no_position_costs_more_than_rounded_to_the_nearest() -> None:
    scene = Scene()
    found = scene.costs(scene.find(scene.prices_LJX), scene.prices_LJX)
    nearest = scene.costs(scene.states_PD.round(), scene.prices_LJX)
    assert (found <= nearest + 1e-5).all()
    assert float(found.mean()) < 0.9 * float(nearest.mean())


def test_the_best_of_all_neighbors_is_hardly_better() -> None:
    """Coordinate descent against every combination of whole numbers around the state, and 0."""
    scene = Scene(width=3)
    found = scene.costs(scene.find(scene.prices_LJX), scene.prices_LJX)
    gaps = []
    for position in range(_P):
        choices = [
            sorted({math.floor(y) - 1, math.floor(y), math.ceil(y), math.ceil(y) + 1, 0})
            for y in scene.states_PD[position].tolist()
        ]
        tried = torch.tensor(list(itertools.product(*choices)), dtype=torch.float32)
        one = Scene(width=3)
        one.states_PD = scene.states_PD[position].expand(len(tried), -1)
        gaps.append(float(found[position] - one.costs(tried, scene.prices_LJX).min()))
    assert min(gaps) > -1e-5
    assert sum(gap > 1e-5 for gap in gaps) < 0.3 * _P


def test_positions_are_searched_in_the_class_that_costs_them_least() -> None:
    """Of a class in which only 0 is cheap, and one in which no number is dear."""
    scene = Scene()
    distances = torch.arange(-127, 128).abs()
    of_zeros_JX = (0.1 + 9.0 * (distances > 0)).expand(_D, -1)
    prices_LJX = torch.stack([of_zeros_JX, scene.prices_LJX[0]])
    scene.states_PD[:5] *= 0.05
    found_PJ = scene.find(prices_LJX)
    assert not found_PJ[:5].any()
    assert torch.equal(found_PJ[5:], scene.find(scene.prices_LJX)[5:])
    costs = scene.costs(found_PJ, prices_LJX)
    for one_LJX in (prices_LJX[:1], prices_LJX[1:]):
        assert float(costs.sum()) < float(scene.costs(scene.find(one_LJX), one_LJX).sum())


def test_bits_without_a_price_leave_the_loss_alone() -> None:
    scene = Scene()
    free_LJX = torch.zeros_like(scene.prices_LJX)
    found, nearest = scene.find(free_LJX), scene.states_PD.round()
    losses, losses_of_nearest = scene.costs(found, free_LJX), scene.costs(nearest, free_LJX)
    assert (losses <= losses_of_nearest + 1e-5).all()
    assert not torch.equal(found, nearest)


def test_a_position_whose_distribution_does_not_depend_on_its_state_costs_no_bits() -> None:
    """A head that tells no id from another, and a price on all but 0."""
    scene = Scene(scale=0.0)
    assert not scene.find(scene.prices_LJX).any()


def test_certain_positions_keep_their_state(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where one id has all the mass F is 0, and without the least tail a state could be lost."""
    scene = Scene(scale=30.0)
    lost = scene.find(scene.prices_LJX)
    monkeypatch.setattr(rate_distortion, "_LEAST_TAIL", 0.01)
    kept = scene.find(scene.prices_LJX)
    error_of_lost, error_of_kept = (
        float((numbers - scene.states_PD).square().mean()) for numbers in (lost, kept)
    )
    assert error_of_kept < 0.2 < 0.5 * error_of_lost


@pytest.mark.parametrize("num_kept", [4, 16])
def test_a_tail_is_taken_into_account(num_kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few kept ids, and a mean over positions: the whole cost still falls."""
    monkeypatch.setattr(rate_distortion, "_NUM_KEPT", num_kept)
    scene = Scene()
    found = scene.costs(scene.find(scene.prices_LJX), scene.prices_LJX)
    nearest = scene.costs(scene.states_PD.round(), scene.prices_LJX)
    assert float(found.mean()) < float(nearest.mean())


@pytest.mark.parametrize("width", [1, 8, 9])
def test_any_number_of_components_and_positions(
    width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks that are not full, and memory for few positions: the same numbers."""
    scene = Scene(width=width)
    at_once = scene.find(scene.prices_LJX)
    assert at_once.shape == (_P, width)
    monkeypatch.setattr(rate_distortion, "_NUM_FLOATS", 1)
    assert (scene.find(scene.prices_LJX) == at_once).float().mean() > 0.99
    scene.states_PD = scene.states_PD[:0]
    assert scene.find(scene.prices_LJX).shape == (0, width)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_states_that_are_not_finite_do_not_stop_the_others(value: float) -> None:
    scene = Scene()
    whole = scene.find(scene.prices_LJX)
    logits = scene.logits(torch.cat([torch.full((1, _D), value), scene.states_PD[1:]]))
    found = scene.search.coefficients(scene.states_PD, logits, scene.prices_LJX)
    assert torch.equal(found[1:], whole[1:])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # PyTorch's own
def test_compiled_it_finds_the_same() -> None:
    scene = Scene()
    compiled = RateDistortion(scene.head, torch.eye(_D), chunk=16, compile="on")
    compiled.compile()
    found = compiled.coefficients(scene.states_PD, scene.logits(scene.states_PD), scene.prices_LJX)
    assert (found == scene.find(scene.prices_LJX)).float().mean() > 0.99
