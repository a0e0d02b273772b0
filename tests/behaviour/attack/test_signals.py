"""SIGINT and SIGTERM at random instants: every command ends within three seconds, in order.

`stopping` has the attack and can be run by hand; the number of tries here may be set by
HEADGRAFT_ATTACK_TRIES, the first of them by HEADGRAFT_ATTACK_FIRST.
"""

import os

import pytest

from .stopping import KINDS, Stops

FIRST = int(os.environ.get("HEADGRAFT_ATTACK_FIRST", "0"))
TRIES = int(os.environ.get("HEADGRAFT_ATTACK_TRIES", "12"))
MANY = 500
# Of a few tries most are of what ends soonest.
FEW = ("create", "images", "fit", "create", "finetune", "images")
FEW += ("fit", "compare", "predict", "create", "predict", "report")


@pytest.fixture(scope="module")
def stops(start, world, tmp_path_factory):
    stops = Stops(start, tmp_path_factory.mktemp("stops"), world, fresh=0.1)
    yield stops
    print("\n" + stops.told())


@pytest.mark.long
@pytest.mark.parametrize("number", range(FIRST, FIRST + TRIES))
def test_a_signal_ends_it(stops, seed, number):
    stops.seed = seed
    stops.stop(number, FEW[number % len(FEW)])


@pytest.mark.slow
@pytest.mark.parametrize("number", range(1000, 1000 + MANY))
def test_so_do_five_hundred(stops, seed, number):
    stops.seed = seed
    stops.stop(number, KINDS[number % len(KINDS)])
