"""What a check foretells: how the model will be some edits on, if they go on as so far.

Edits are independent of each other, so what they do to ordinary text, a mean square, grows with
their number, and so do the edits that are lost by it, and what each is not given of what it asks
for. A prompt about another subject is moved most by the edit whose prompt it is, and so what such
prompts lose grows slowly, about with the cube root (docs/sessions.md has what came).
"""

from __future__ import annotations

from collections.abc import Sequence

from rome_fast.session.health import Health, Outlook

# Less than this share of what an edit asks for: its target is in doubt.
IN_DOUBT = 0.5


def outlook(health: Health, shares: Sequence[float], horizon: int) -> Outlook | None:
    """From a check, and from how much of what each edit asks for the solve gives it.

    Args:
        shares: of the edits that are solved as one.
        horizon: edits ahead; no more than there are.
    """
    n, ahead = health.n_edits, min(horizon, health.n_edits)
    if not ahead:
        return None
    growth = (n + ahead) / n
    retention, neighbourhood = health.retention, health.neighbourhood
    if retention is not None:
        lacking = [1 - share for share in shares]
        now, then = (sum(grown * lost > IN_DOUBT for lost in lacking) for grown in (1.0, growth))
        lost = growth * (1 - retention) + (then - now) / max(len(shares), 1)
        retention = max(1 - lost, 0.0)
    if neighbourhood is not None:
        neighbourhood = max(1 - (1 - neighbourhood) * growth ** (1 / 3), 0.0)
    return Outlook(
        n_edits=n + ahead,
        perplexity=health.perplexity**growth,
        retention=retention,
        neighbourhood=neighbourhood,
        spread=None if health.spread is None else health.spread * growth,
    )
