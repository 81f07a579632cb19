import torch
from torch import nn

from helios.training.residence import Residence


def pair():
    models = {name: nn.Linear(4, 4) for name in ("one", "two")}
    for model in models.values():
        model.weight.requires_grad_(False)
    return models


def test_one_at_a_time_is_there_with_the_values_it_had():
    models = pair()
    weights = {name: model.weight.detach().clone() for name, model in models.items()}
    residence = Residence(models, torch.device("cpu"))
    assert residence.here is None
    assert all(model.weight.numel() == 0 for model in models.values())
    for name, other in (("one", "two"), ("two", "one"), ("one", "two")):
        residence.use(name)
        residence.use(name)
        assert residence.here == name
        assert torch.equal(models[name].weight, weights[name])
        assert models[other].weight.numel() == 0
    assert all(model.bias.numel() == 4 for model in models.values())  # what learns stays


def test_a_graph_survives_an_absence():
    models = pair()
    x = torch.randn(3, 4)
    (models["one"](x * models["one"].bias) ** 2).sum().backward()
    expected = models["one"].bias.grad.clone()
    models["one"].bias.grad = None
    residence = Residence(models, torch.device("cpu"))
    residence.use("one")
    loss = (models["one"](x * models["one"].bias) ** 2).sum()
    residence.use("two")
    residence.use("one")
    loss.backward()
    assert torch.equal(models["one"].bias.grad, expected)
