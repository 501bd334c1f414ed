from __future__ import annotations

import pytest
from toy_family import toy_model

from vlm_lora_plugin import prepare
from vlm_lora_plugin.errors import TrainingError
from vlm_lora_plugin.parallel import agreement


class Others(list):
    """The other ranks, and how often they were asked."""

    asked = 0


@pytest.fixture
def ranks(monkeypatch):
    """Lets this process stand for rank 0, and others for the ranks whose statements are put in."""
    others = Others()

    def everyone(value):
        others.asked += 1
        return [value, *(other(value) for other in others)]

    monkeypatch.setattr(agreement, "several_ranks", lambda: True)
    monkeypatch.setattr(agreement, "_everyone", everyone)
    return others


def as_rank(manifest, **more):
    """A rank with this manifest: tells its digest when digests are gathered, else its whole statement."""
    own = agreement.json.loads(agreement.json.dumps({**agreement._statement(manifest), **more}))
    digest = agreement.hashlib.sha256(agreement.json.dumps(own, sort_keys=True).encode()).hexdigest()
    return lambda value: digest if isinstance(value, str) else own


@pytest.fixture
def manifest(toy):
    return prepare(toy_model(), "lora+llm-lora").vlm_lora.manifest


def test_equal_ranks_agree(ranks, manifest):
    ranks.append(as_rank(manifest))

    agreement.check_ranks_agree(manifest)

    assert ranks.asked == 1, "digests suffice where they are equal"


def test_a_difference_names_parameters_settings_and_ranks(ranks, manifest):
    other = prepare(toy_model(), {"preset": "lora+llm-lora", "lora": {"r": 2}}).vlm_lora.manifest
    ranks += [as_rank(manifest), as_rank(other), as_rank(other)]

    with pytest.raises(TrainingError) as caught:
        agreement.check_ranks_agree(manifest)

    text = str(caught.value)
    assert "Ranks 2, 3 (2 in all) against rank 0" in text
    assert "model.layers.0.self_attn.q_proj.lora_A.weight: lora (peft_lora) [16, 16] / lora (peft_lora) [2, 16]" in text
    assert "lora.r: 16 / 2" in text


@pytest.mark.parametrize(
    ("topic", "key"), [("versions", "torch"), ("versions", "adapter toy"), ("base", "hidden_size"), ("base", "dtype")]
)
def test_other_versions_and_other_bases_are_noticed(ranks, manifest, topic, key):
    statement = agreement._statement(manifest)
    ranks.append(as_rank(manifest, **{topic: {**statement[topic], key: "another"}}))

    with pytest.raises(TrainingError, match=f"{topic} {key}: .* / another"):
        agreement.check_ranks_agree(manifest)


def test_where_a_recipe_came_from_makes_no_difference(ranks, manifest):
    ranks.append(as_rank(manifest))
    elsewhere = agreement.json.loads(manifest.to_json()) | {"parameters": manifest.parameters}
    elsewhere["recipe"]["origin"] = "a file"
    del elsewhere["document_digest"]  # of the file alone

    agreement.check_ranks_agree(type(manifest)(**elsewhere))

    assert ranks.asked == 1


def test_ranks_that_see_different_checkpoints_are_refused(ranks):
    ranks.append(lambda value: None)

    with pytest.raises(TrainingError, match="rank 0: checkpoint-4, rank 1: none"):
        agreement.check_same_checkpoint("out/checkpoint-4")


def test_a_process_alone_asks_nobody(ranks, manifest, monkeypatch):
    monkeypatch.setattr(agreement, "several_ranks", lambda: False)

    agreement.check_ranks_agree(manifest)
    agreement.check_same_checkpoint(None)

    assert ranks.asked == 0
