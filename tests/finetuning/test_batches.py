"""Batches by token budget: every example once, no pass over the budget, the same work for all processes."""

from random import Random

import pytest
import torch

from mixdistill.data.chat import Example
from mixdistill.finetuning.batches import pack, pad, token_groups

LENGTHS = Random(0).choices(range(3, 90), k=32)


def test_packed_positions_restart_and_nothing_predicts_into_the_next_example():
    batch = pack([Example([4, 5, 6], 1), Example([7, 8], 1)])
    assert batch.inputs["input_ids"].tolist() == [[4, 5, 6, 7, 8]]
    assert batch.inputs["position_ids"].tolist() == [[0, 1, 2, 0, 1]]
    assert batch.inputs["cu_seq_lens_q"].tolist() == batch.inputs["cu_seq_lens_k"].tolist() == [0, 3, 5]
    assert batch.inputs["cu_seq_lens_q"].dtype == torch.int32
    assert batch.inputs["max_length_q"] == batch.inputs["max_length_k"] == 3
    assert batch.predicts.tolist() == [0, 1, 3]
    assert batch.labels.tolist() == [5, 6, 8]


def test_padded_rows_are_asked_for_the_same_labels():
    batch = pad([Example([4, 5, 6], 1), Example([7, 8], 1)], pad_token=0)
    assert batch.inputs["input_ids"].tolist() == [[4, 5, 6], [7, 8, 0]]
    assert batch.predicts.tolist() == [0, 1, 3]
    assert batch.labels.tolist() == [5, 6, 8]


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("budget", [10, 90, 200, 10_000])
def test_groups_hold_every_example_once_within_the_budget(packed, budget):
    groups = token_groups(LENGTHS, budget, packed)
    assert sorted(i for group in groups for i in group) == list(range(len(LENGTHS)))
    for group in groups:
        longest = max(LENGTHS[i] for i in group)
        tokens = sum(LENGTHS[i] for i in group) if packed else len(group) * longest
        assert tokens <= max(budget, longest)
        assert tokens <= budget or len(group) == 1


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("packed", [True, False])
def test_examples_beyond_a_boundary_share_no_pass_with_others(packed, ranks):
    draw = Random(0)
    lengths = [draw.randint(2, 60) for _ in range(40)]
    shares = [token_groups(lengths, 90, packed, rank, ranks, boundary=30) for rank in range(ranks)]
    assert len({len(share) for share in shares}) == 1
    groups = [group for share in shares for group in share if group]
    assert sorted(i for group in groups for i in group) == list(range(40))
    assert all(len({lengths[i] > 30 for i in group}) == 1 for group in groups)
    assert len(groups) < 40


def test_packing_fills_its_passes():
    groups = token_groups(LENGTHS, 300, packed=True)
    assert sum(LENGTHS) / (300 * len(groups)) > 0.85
    assert len(groups) < len(token_groups(LENGTHS, 300, packed=False))


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
@pytest.mark.parametrize("lengths", [LENGTHS, LENGTHS[:2]])
def test_processes_get_equally_many_passes_and_together_all_examples(lengths, ranks):
    shares = [token_groups(lengths, 300, True, rank, ranks) for rank in range(ranks)]
    assert len({len(share) for share in shares}) == 1
    assert sorted(i for share in shares for group in share for i in group) == list(range(len(lengths)))


def test_processes_get_about_equally_many_tokens():
    shares = [token_groups(LENGTHS, 300, True, rank, 4) for rank in range(4)]
    loads = [sum(LENGTHS[i] for group in share for i in group) for share in shares]
    assert max(loads) < 1.2 * min(loads)
