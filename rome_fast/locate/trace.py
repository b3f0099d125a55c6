"""Trace: what locate found, as data, as a picture and in the terminal."""

from __future__ import annotations

import io
import json
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.table import Table
    from torch import Tensor

# What is put back, in the words of pictures and tables.
TITLES = {"hidden": "hidden states", "mlp": "MLPs", "attn": "attentions"}
_BARS = " ▁▂▃▄▅▆▇█"
_LABEL, _BESIDE_THE_BARS = 12, 17  # cells


@dataclass(frozen=True, eq=False)
class Trace:
    """Where one prompt's answer comes from: ROME's causal tracing (section 2.1, figure 1).

    ``print(trace)`` shows a bar for each token and layer, as high as the part of the answer's
    probability that the state brings back.

    Attributes:
        prompt: the whole text.
        tokens: those of the prompt, each as text.
        subject_range: first token of the subject, and the one after its last.
        answer: the token that the model says next.
        high: its probability.
        low: its mean probability with noise on the subject and nothing restored.
        scores: by kind, float64 [n_tokens, n_layers]: the same with the state of this token and
            layer restored; for "mlp" and "attn" of the layers in a window around it.
        settings: noise (in standard deviations of the embeddings), noise_std (its own), samples,
            window, seed and the model's class.
    """

    prompt: str
    subject: str
    tokens: tuple[str, ...]
    subject_range: tuple[int, int]
    answer: str
    high: float
    low: float
    scores: Mapping[str, Tensor]
    settings: Mapping[str, Any]

    def peak(self, kind: str) -> tuple[int, int]:
        """(token, layer) with the highest score; the first of equal ones."""
        scores = self.scores[kind]
        token, layer = divmod(int(scores.argmax()), scores.shape[1])
        return token, layer

    def title(self, kind: str) -> str:
        """What is restored for the scores of this kind."""
        if kind == "hidden":
            return TITLES[kind]
        return f"{TITLES[kind]}, window of {self.settings['window']}"

    def labels(self) -> list[str]:
        """The tokens, those of the subject with a star."""
        start, end = self.subject_range
        return [f"{t}*" if start <= i < end else t for i, t in enumerate(self.tokens)]

    def to_dict(self) -> dict[str, Any]:
        """Everything, JSON-able."""
        return {
            **vars(self),
            "tokens": list(self.tokens),
            "subject_range": list(self.subject_range),
            "scores": {kind: scores.tolist() for kind, scores in self.scores.items()},
            "settings": dict(self.settings),
        }

    def save(self, path: str | Path) -> None:
        """Write ``to_dict()`` as JSON."""
        text = json.dumps(self.to_dict(), ensure_ascii=False, indent=1)
        Path(path).write_text(text + "\n", encoding="utf-8")

    def plot(self, path: str | Path) -> None:
        """Draw a heat map for each kind into a picture, in the format of the path's suffix.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        from rome_fast.locate.plot import save_heat_maps

        panels = {self.title(kind): scores for kind, scores in self.scores.items()}
        answer = (
            f"p({self.answer.strip()}): {self.low:.3f} with noise on the subject (*), "
            f"{self.high:.3f} without; colour: with one state restored"
        )
        title = f"{textwrap.shorten(self.prompt, 90, placeholder='...')}\n{answer}"
        save_heat_maps(path, panels, self.labels(), self.low, title)

    def remarks(self) -> list[str]:
        """Where the strongest state is not at the subject's last token, at which edits are made."""
        last = self.subject_range[1] - 1
        found = []
        for kind in self.scores:
            token, layer = self.peak(kind)
            # After the subject the answer itself is put together; attention there is no surprise.
            if token != last and (kind == "mlp" or token < last):
                place = f"{self.tokens[token]!r} in layer {layer}"
                found.append(
                    f"{self.title(kind)}: the strongest is {place}, not at the subject's last "
                    f"token {self.tokens[last]!r}, where an edit is made: try `plan` before it"
                )
        return found

    def __rich_console__(self, _: Console, options: ConsoleOptions) -> RenderResult:
        from rich.text import Text

        yield Text(
            f"{self.prompt!r} -> {self.answer!r}: p = {self.high:.3f}; "
            f"with noise on the subject (*) {self.low:.3f}"
        )
        for kind, scores in self.scores.items():
            yield Text(f"\n{self.title(kind)}")
            yield self._table(scores, options.max_width)
        yield Text("")
        yield from map(Text, self.remarks())

    def _table(self, scores: Tensor, width: int) -> Table:
        """Fits the width: where there is no room for a bar a layer, one is of several."""
        from rich import box
        from rich.table import Table
        from rich.text import Text

        labels = [Text(label, no_wrap=True) for label in self.labels()]
        for label in labels:
            label.truncate(_LABEL, overflow="ellipsis")
        n_layers = scores.shape[1]
        room = width - max(label.cell_len for label in labels) - _BESIDE_THE_BARS
        at_once = -(-n_layers // max(room, 1))
        told = f"layers 0-{n_layers - 1}" + (f", {at_once} a bar" if at_once > 1 else "")
        table = Table("", told, "highest", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
        for label, row in zip(labels, scores, strict=True):
            highest = torch.stack([part.max() for part in row.split(at_once)])
            best = f"{row.max():.3f} at {int(row.argmax())}"
            table.add_row(label, Text(self._bars(highest), no_wrap=True), best)
        return table

    def __str__(self) -> str:
        from rich.console import Console

        console = Console(file=io.StringIO(), width=120, color_system=None)
        console.print(self)
        text: str = console.file.getvalue()  # type: ignore[attr-defined]
        return text.rstrip()

    def _bars(self, scores: Tensor) -> str:
        """A bar for each score: none for ``low``, a full one for ``high`` and above."""
        reach = max(self.high - self.low, 1e-9)
        shares = ((scores - self.low) / reach).clamp(0, 1)
        return "".join(_BARS[round(share * (len(_BARS) - 1))] for share in shares.tolist())
