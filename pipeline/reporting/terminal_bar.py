"""Progress as a bar that is drawn over itself, with lines above it: for a terminal."""

from typing import Any, TextIO

from tqdm import tqdm

_BAR = (
    "{desc}: {percentage:3.0f}%|{bar:20}| {n_fmt}/{total_fmt} "
    "[{elapsed}<{remaining}, {rate_fmt}{postfix}]"
)
_BAR_WITHOUT_RATE = "{desc}: {percentage:3.0f}%|{bar:20}| {n_fmt}/{total_fmt}{unit}{postfix}"


class TerminalBar:
    """``PlainLines`` for a terminal."""

    def __init__(self, name: str, unit: str, stream: TextIO, *, has_rate: bool = True) -> None:
        self._name, self._unit, self._stream = name, unit, stream
        self._format = _BAR if has_rate else _BAR_WITHOUT_RATE
        self._bar: Any = None

    def show(self, num_done: int, num_total: int, figures: str) -> None:
        """Move to ``num_done`` of ``num_total``; ``figures`` are at the end of the line."""
        num_done = min(num_done, num_total)
        if self._bar is None:
            self._bar = tqdm(
                desc=self._name,
                total=num_total,
                initial=num_done,
                unit=self._unit,
                unit_scale=True,
                bar_format=self._format,
                dynamic_ncols=True,
                smoothing=0.05,
                file=self._stream,
            )
        self._bar.total = num_total  # what is estimated changes
        self._bar.set_postfix_str(figures, refresh=False)
        self._bar.update(num_done - self._bar.n)

    def say(self, text: str) -> None:
        """Lines of their own, above the bar."""
        tqdm.write(text, file=self._stream)

    def close(self) -> None:
        """Leave the bar as it is, and go to the next line."""
        if self._bar is not None:
            self._bar.close()
