"""What refused requests cost: that every shape is refused, and that the figures come; never what they are."""

from bench.bars import bars
from bench.denials import denials, head_of, shapes
from bench.rig import rig
from bench.settings import QUICK
from bench.sheets import refused
from mitmgate.core.http1 import Bounds


def test_every_head_is_within_the_bounds() -> None:
    names = [shape.name for shape in shapes()]
    assert len(set(names)) == len(names)
    bounds = Bounds()
    for shape in shapes():
        assert len(head_of(shape)) <= bounds.head, shape.name
        assert len(shape.target) <= bounds.target, shape.name
        assert len(shape.lines) < bounds.fields, shape.name


def test_every_head_is_refused_and_has_a_cost() -> None:
    with rig() as made:
        found = denials(made, QUICK)
    assert set(found.costs) == {shape.name for shape in shapes()}
    assert all(cost > 0 for costs in found.costs.values() for cost in costs)
    judged = bars(None, None, found)
    assert [bar.bound for bar in judged] == [3.0, 3.0]
    assert judged[0].note == found.dearest()[0][0]
    assert refused(found).rows[0][0] == found.dearest()[0][0]
