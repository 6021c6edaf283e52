"""The terms of the loss: their weights at a step, and what they need of a cache.

    (1−α−β−γ−δ)·CE + α·T²·KL + β·L_F + γ·L_S + δ·L_L

as in Distil-xLSTM (arXiv 2503.18565, section 3), and with further terms of the weights γ and δ,
which are 0 if they are not asked for.

To add a term, write its class in a file of its own (see ``loss_term``), and give it a weight, an
entry in ``further_terms`` and, if it needs more than the labels, a need here. Its settings belong
to the config. Nothing heavy is imported before the terms are made, so that a cache that lacks what
a recipe needs is refused at once.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stages.train_student.config import TrainStudentConfig
from stages.train_student.data.requirements import CacheNeeds
from stages.train_student.losses.schedules import annealed, start_of_epoch

if TYPE_CHECKING:
    from stages.train_student.losses.loss_term import LossTerm


@dataclass(frozen=True)
class LossWeights:
    """Those of the terms of one step; metrics have them as ``schedule/NAME``."""

    alpha: float
    beta: float
    temperature: float
    state_mse: float = 0.0
    """γ."""
    layer_mse: float = 0.0
    """δ."""

    @property
    def cross_entropy(self) -> float:
        """What the terms that need a teacher leave to the labels."""
        return 1 - self.alpha - self.beta - self.state_mse - self.layer_mse

    @property
    def reads_distribution(self) -> bool:
        """Whether a term compares with the teacher's distribution, or the states it is made of."""
        return bool(self.alpha or self.state_mse)

    @property
    def uses_teacher(self) -> bool:
        """Whether any term but cross-entropy has a weight."""
        return self.cross_entropy != 1


@dataclass(frozen=True)
class WeightedTerm:
    """A term and its weight in the loss of a step."""

    term: "LossTerm"
    weight: Callable[[LossWeights], float]


def further_terms(config: TrainStudentConfig) -> tuple[WeightedTerm, ...]:
    """The terms beside cross-entropy and KL, in the order of their metrics."""
    from stages.train_student.losses.states.frobenius import FrobeniusTerm
    from stages.train_student.losses.states.layers import LayerMSETerm
    from stages.train_student.losses.states.mean_square import StateMSETerm

    terms = [WeightedTerm(FrobeniusTerm(), lambda weights: weights.beta)]
    if config.state_mse_weight:
        terms.append(WeightedTerm(StateMSETerm(), lambda weights: weights.state_mse))
    if config.layer_mse_weight:
        terms.append(WeightedTerm(LayerMSETerm(), lambda weights: weights.layer_mse))
    return tuple(terms)


def loss_weights(config: TrainStudentConfig, step: int, steps_per_epoch: int) -> LossWeights:
    """The weights of optimizer step ``step`` (from 0), under the recipe's epoch rule."""
    epoch, step_in_epoch = divmod(step, steps_per_epoch)
    k = step if config.epoch_rule == "subtract" else step_in_epoch
    return LossWeights(
        alpha=annealed(
            start_of_epoch(config, config.alpha_start, config.alpha_end, epoch),
            config.alpha_end,
            k,
        ),
        beta=annealed(config.beta_start, config.beta_end, step),
        temperature=annealed(
            start_of_epoch(config, config.temperature_start, config.temperature_end, epoch),
            config.temperature_end,
            k,
        ),
        state_mse=config.state_mse_weight,
        layer_mse=config.layer_mse_weight,
    )


def cache_needs(config: TrainStudentConfig) -> CacheNeeds:
    """What the terms that ``config`` ever gives a weight need; every cache has the labels.

    An alignment has no such terms: it reads token ids.
    """
    if config.objective == "alignment":
        return CacheNeeds(temperatures={}, hidden_states_for=())
    has_kl = max(config.alpha_start, config.alpha_end) > 0
    has_frobenius = max(config.beta_start, config.beta_end) > 0
    temperatures = {
        "temperature_start": config.temperature_start,
        "temperature_end": config.temperature_end,
    }
    return CacheNeeds(
        temperatures=temperatures if has_kl else {},
        hidden_states_for=("beta_start", "beta_end") if has_frobenius else (),
        coded_states_for=("state_mse_weight",) if config.state_mse_weight else (),
        layers_for=("layer_mse_weight",) if config.layer_mse_weight else (),
    )
