"""Draws what is watched: once, again and again over itself, or as lines where it is no terminal."""

import time
from collections.abc import Callable

from rich.console import Console
from rich.live import Live

from pipeline.watch.view import View, plain_line
from pipeline.watch.watched import Watcher

Sleep = Callable[[float], None]


def show_once(watcher: Watcher, console: Console) -> None:
    """Everything there is to see now."""
    console.print(View(watcher.look()))


def follow(watcher: Watcher, console: Console, seconds: float, sleep: Sleep = time.sleep) -> None:
    """Look every ``seconds`` until all has finished; Ctrl-C ends it. The last look stays."""
    watched = watcher.look()
    try:
        if console.is_terminal:
            with Live(console=console, screen=True, auto_refresh=False) as live:
                while not watched.has_ended:
                    live.update(View(watched), refresh=True)
                    sleep(seconds)
                    watched = watcher.look()
        else:
            said: object = None
            while not watched.has_ended:
                if (reached := [(run.outcome, run.step) for run in watched.runs]) != said:
                    line = plain_line(watched)
                    console.print(line, markup=False, highlight=False, soft_wrap=True)
                said = reached
                sleep(seconds)
                watched = watcher.look()
    except KeyboardInterrupt:
        pass
    console.print(View(watched))
