"""Random records: every reader takes them, or raises what it says."""

import random

import pytest
from fuzzing import record, value

from rome_fast import EditRequest, load_records
from rome_fast.easyedit.metrics import _questions
from rome_fast.easyedit.requests import build_requests, check_requests
from rome_fast.errors import RomeFastError
from rome_fast.evaluate.formats import FORMATS

N_QUICK, N_ALL = 3000, 100_000
COLUMNS = (
    "prompts target_new ground_truth target_neg rephrase_prompts subject locality portability"
).split()


def read(draw):
    load_records([record(draw)], draw.choice(("auto", *FORMATS)))


def parse(draw):
    EditRequest.parse(record(draw))


def facade(draw):
    """What passes the check is never refused later."""
    for request in check_requests([record(draw)]):
        list(_questions(request))


def facade_lists(draw):
    given = {"prompts": ["Paris is in"], "target_new": ["Rome"], "subject": ["Paris"]}
    for _ in range(draw.choice((1, 1, 2))):
        given[draw.choice(COLUMNS)] = value(draw)
    for request in build_requests(**given):
        list(_questions(request))


@pytest.mark.parametrize("reader", [read, parse, facade, facade_lists])
@pytest.mark.parametrize("n", [N_QUICK, pytest.param(N_ALL, marks=pytest.mark.exhaustive)])
def test_random_records_raise_only_what_is_documented(reader, n):
    taken = 0
    for seed in range(n):
        try:
            reader(random.Random(seed))
        except RomeFastError:
            continue
        except Exception as error:
            raise AssertionError(f"seed {seed}") from error
        taken += 1
    assert n / 20 < taken < n * 0.95, "most draws are refused, or none is"
