import pytest
import torch

from pretraining.muon import Muon, orthogonalised


@pytest.mark.parametrize("shape", [(8, 24), (24, 8), (16, 16), (1, 9)])
def test_orthogonalised_matrices_have_singular_values_of_about_1(shape):
    torch.manual_seed(0)
    x = torch.randn(shape) * 100
    singular = torch.linalg.svdvals(orthogonalised(x))
    assert 0.6 < singular.min() <= singular.max() < 1.3


def test_orthogonalised_matrices_keep_their_singular_vectors():
    torch.manual_seed(0)
    x = torch.randn(8, 24)
    u, _, v = torch.linalg.svd(x, full_matrices=False)
    seen = u.t() @ orthogonalised(x) @ v.t()
    torch.testing.assert_close(seen, torch.diag(seen.diag()), rtol=0, atol=1e-4)


@pytest.mark.parametrize("shape", [(32, 96), (96, 32)])
def test_an_update_is_as_large_as_one_of_adamw(shape):
    """Root mean square 0.2 times the learning rate, whatever the gradient's size."""
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.zeros(shape))
    weight.grad = 1000 * torch.randn(shape)
    Muon([weight], lr=0.01).step()
    assert weight.square().mean().sqrt().item() == pytest.approx(0.2 * 0.01, rel=0.3)


def test_half_multiplies_in_bfloat16_and_comes_to_nearly_the_same_update():
    torch.manual_seed(0)
    gradient, weights = torch.randn(32, 96), []
    for half in (False, True):
        weights.append(torch.nn.Parameter(torch.zeros(32, 96)))
        weights[-1].grad = gradient.clone()
        Muon(weights[-1:], lr=0.01, half=half).step()
    error = (weights[1] - weights[0]).norm() / weights[0].norm()
    assert 1e-4 < error < 0.05


def test_muon_lowers_a_least_squares_loss():
    torch.manual_seed(0)
    x, truth = torch.randn(100, 6), torch.randn(6, 4)
    weight = torch.nn.Parameter(torch.zeros(6, 4))
    optimizer, losses = Muon([weight], lr=0.1), []
    for _ in range(100):
        loss = (x @ weight - x @ truth).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]
