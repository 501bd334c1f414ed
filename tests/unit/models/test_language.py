import pytest
import torch

from vlm_lora_plugin.models.language import RMSNorm, apply_rotary, positions_in_row, rotary_tables


def test_a_norm_scales_rows_to_a_mean_square_of_one():
    norm = RMSNorm(8, eps=0.0)
    normed = norm(torch.randn(3, 8) * 100)
    torch.testing.assert_close(normed.square().mean(-1), torch.ones(3))


def test_a_norm_computes_in_fp32_and_answers_in_the_dtype_of_its_input():
    norm = RMSNorm(4, eps=1e-6).half()
    large = torch.full((1, 4), 300.0, dtype=torch.float16)  # its square is beyond fp16
    assert norm(large).dtype == torch.float16
    torch.testing.assert_close(norm(large), torch.ones(1, 4, dtype=torch.float16))


def test_rotated_products_depend_on_the_distance_alone():
    query, key = torch.randn(1, 1, 1, 8), torch.randn(1, 1, 1, 8)

    def product(first, second):
        at = [rotary_tables(torch.tensor([[place]]), 8, 10000.0) for place in (first, second)]
        return (apply_rotary(query, at[0]) * apply_rotary(key, at[1])).sum()

    torch.testing.assert_close(product(7, 3), product(14, 10), rtol=1e-4, atol=1e-5)
    assert not torch.isclose(product(7, 3), product(7, 4))


def test_channels_beyond_the_tables_are_not_rotated():
    x = torch.randn(1, 2, 3, 12)
    rotated = apply_rotary(x, rotary_tables(torch.arange(3)[None], 8, 10000.0))
    assert torch.equal(rotated[..., 8:], x[..., 8:])
    assert not torch.equal(rotated[..., :8], x[..., :8])


@pytest.mark.parametrize(
    ("mask", "seen", "length", "positions"),
    [
        (None, 0, 3, [[0, 1, 2]]),
        (None, 4, 2, [[4, 5]]),
        ([[1, 1, 1], [1, 1, 0]], 0, 3, [[0, 1, 2], [0, 1, 2]]),
        ([[1, 1, 1], [0, 1, 1]], 0, 3, [[0, 1, 2], [0, 0, 1]]),
        ([[1, 1, 1], [0, 1, 1]], 2, 1, [[2], [1]]),
    ],
)
def test_a_rows_places_are_counted_from_its_first_token(mask, seen, length, positions):
    mask = None if mask is None else torch.tensor(mask)
    found = positions_in_row(mask, seen, torch.zeros(len(positions), length, 4))
    assert found.tolist() == positions
