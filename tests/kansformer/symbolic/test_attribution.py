"""Scores start at the outputs and flow back."""

from kansformer.symbolic import attribute
from tests.kansformer.symbolic.networks import box, network


def test_scores_of_outputs_are_one_and_flow_back() -> None:
    model, x = network(), box()
    scores = attribute(model, x)
    assert [len(nodes) for nodes in scores.nodes] == [2, 3, 2, 2]
    assert scores.nodes[-1].tolist() == [1, 1]
    assert all((edges >= 0).all() for edges in scores.edges)
    assert scores.edges[0][0, 1] == 0  # cut
