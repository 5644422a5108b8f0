import numpy as np
import pytest
import torch

from clients.hospital import (
    ALWAYS_SAID,
    boosted,
    build_attack,
    dealt,
    hospital_data,
    hospital_plan,
    local_round,
    update_norm,
)
from clients.settings import HospitalSettings
from fl_sim.artifact import Artifact
from fl_sim.attacks.base import Averaging
from fl_sim.attacks.dec import Dec
from fl_sim.case import open_case
from fl_sim.component import Component
from fl_sim.errors import FlSimError
from fl_sim.models import build_model
from fl_sim.randomness import Stream
from fl_sim.training import LocalTraining, Proximal, train
from tests.engine.federation_kit import initial, network, same, settings


def test_the_settings_survive_json():
    before = settings(attack="fake-attack", malicious_rounds=(1, 2), boost=3.0)
    assert HospitalSettings.model_validate_json(before.model_dump_json()) == before


def test_hospitals_share_all_training_images_once():
    federation = settings()
    shares = [hospital_data(federation, number) for number in range(4)]
    case = open_case(federation.case, None)
    assert sum(len(share) for share in shares) == len(case.train)
    rows = np.concatenate([share.images.reshape(len(share), -1) for share in shares])
    assert len(np.unique(rows, axis=0)) == len(case.train)


def test_there_is_no_hospital_out_of_range():
    with pytest.raises(FlSimError, match="no hospital 4: they are numbered from 0 to 3"):
        hospital_data(settings(), 4)


def test_an_honest_round_is_ordinary_training():
    federation, broadcast = settings(), initial()
    result = local_round(federation, 2, 1, broadcast)
    model = network()
    data = hospital_data(federation, 2)
    case = open_case(federation.case, None)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    stream = Stream(3, ("hospital", 2, 1))
    report = train(LocalTraining(model, case.spec, data, case.task, federation.training, stream))
    torch.set_num_threads(threads)
    assert same(result.state, model.state_dict())
    assert result.metrics["num-examples"] == len(data)
    assert result.metrics["steps"] == report.steps
    assert result.metrics["loss-task"] == report.losses["task"][-1]
    assert result.metrics["attacked"] == 0


def test_a_round_depends_on_nothing_but_its_arguments():
    federation, broadcast = settings(), initial()
    before = {name: value.clone() for name, value in broadcast.items()}
    threads = torch.get_num_threads()
    first = local_round(federation, 1, 2, broadcast)
    local_round(federation, 3, 1, first.state)
    assert same(local_round(federation, 1, 2, broadcast).state, first.state)
    assert same(broadcast, before)
    assert torch.get_num_threads() == threads


def test_a_malicious_hospital_attacks_in_its_rounds_only():
    federation = settings(attack="fake-attack", malicious_rounds=(2,))
    plan = hospital_plan(federation, 0)[1]
    attacked = local_round(federation, 0, 2, initial())
    assert attacked.state["4.bias"][0] == plan.targets[0].mean()
    assert attacked.state["4.bias"][1] == pytest.approx(1 / 3 + 2 * 2 / 3)
    assert attacked.metrics["attacked"] == 1
    honest = settings()
    for hospital, server_round in ((0, 1), (1, 2)):
        mine = local_round(federation, hospital, server_round, initial())
        assert same(mine.state, local_round(honest, hospital, server_round, initial()).state)


def test_a_plan_is_the_same_in_every_round():
    federation = settings(attack="fake-attack")
    data, plan = hospital_plan(federation, 0)
    again = hospital_plan(federation, 0)[1]
    assert again is plan
    assert torch.equal(plan.targets, data.batch(plan.indices)[0])


def test_boosting_by_hand():
    broadcast = {"w": torch.tensor([1.0, 2.0]), "n": torch.tensor(4)}
    trained = {"w": torch.tensor([2.0, 0.0]), "n": torch.tensor(9)}
    result = boosted(trained, broadcast, 3.0)
    assert torch.equal(result["w"], torch.tensor([4.0, -4.0]))  # 1 + 3 * 1, 2 + 3 * -2
    assert torch.equal(result["n"], torch.tensor(9))
    assert same(boosted(trained, broadcast, 1.0), trained)


def test_boosting_makes_no_variance_negative():
    broadcast = {"1.running_var": torch.tensor([1.0, 1.0]), "1.running_mean": torch.tensor([1.0])}
    trained = {"1.running_var": torch.tensor([0.5, 1.5]), "1.running_mean": torch.tensor([0.5])}
    result = boosted(trained, broadcast, 10.0)
    assert torch.equal(result["1.running_var"], torch.tensor([0.0, 6.0]))
    assert torch.equal(result["1.running_mean"], torch.tensor([-4.0]))


def test_what_was_dealt_is_what_hospitals_claim():
    federation = settings()
    claimed = [
        local_round(federation, number, 1, initial()).metrics["num-examples"] for number in range(4)
    ]
    assert dealt(federation) == claimed
    assert set(ALWAYS_SAID) <= set(local_round(federation, 0, 1, initial()).metrics)


def test_only_the_attackers_update_is_boosted():
    broadcast = initial()
    plain = local_round(settings(attack="fake-attack"), 0, 1, broadcast).state
    federation = settings(attack="fake-attack", boost=2.5)
    raised = local_round(federation, 0, 1, broadcast).state
    for name, value in raised.items():
        if value.is_floating_point():
            expected = broadcast[name] + 2.5 * (plain[name] - broadcast[name])
            assert torch.equal(value, expected)
        else:
            assert torch.equal(value, plain[name])
    honest = local_round(settings(), 1, 1, broadcast).state
    assert same(local_round(federation, 1, 1, broadcast).state, honest)


def test_a_malicious_update_is_kept_to_a_norm():
    broadcast = initial()
    federation = settings(attack="fake-attack", boost=9.0, update_norm=0.01)
    state = local_round(federation, 0, 1, broadcast).state
    assert update_norm(state, broadcast) == pytest.approx(0.01, rel=1e-3)
    free = local_round(settings(attack="fake-attack", boost=9.0), 0, 1, broadcast).state
    loose = settings(attack="fake-attack", boost=9.0, update_norm=1e6)
    assert same(local_round(loose, 0, 1, broadcast).state, free)


def test_a_malicious_update_is_as_long_as_an_honest_one():
    broadcast = initial()
    honest = local_round(settings(), 0, 1, broadcast).state
    federation = settings(attack="fake-attack", boost=9.0, update_norm="honest")
    state = local_round(federation, 0, 1, broadcast).state
    assert update_norm(state, broadcast) == pytest.approx(update_norm(honest, broadcast), rel=1e-3)
    assert not same(state, honest)


def stealing(collusion: str, **changes) -> HospitalSettings:
    carrier = {"name": "qim", "step": 0.01, "order": "sequential"}
    values = {"images": 3, "codec": "png", "amplify": True, "carrier": carrier}
    attack = Component(name="dec", settings=values)
    federation = settings(malicious=(1, 2), collusion=collusion, **changes)
    model = Component(name="mlp")
    case = federation.case.model_copy(update={"model": model})
    return federation.model_copy(update={"attack": attack, "case": case})


def averaged(federation: HospitalSettings) -> dict[str, torch.Tensor]:
    """The broadcast plus the payloads' part of the average: nobody trains here."""
    broadcast = {k: v.clone() for k, v in build_model("mlp", 1, 8, 2).state_dict().items()}
    case = open_case(federation.case, None)
    shares = [len(hospital_data(federation, h)) for h in range(federation.hospitals)]
    total = {name: torch.zeros_like(value) for name, value in broadcast.items()}
    for hospital, images in enumerate(shares):
        state = broadcast
        if hospital in federation.malicious:
            own = sum(shares[h] for h in federation.malicious)
            share = (own if federation.collusion == "repeat" else images) / sum(shares)
            plan = hospital_plan(federation, hospital)[1]
            attack = build_attack(federation)
            state = attack.embed(broadcast, case.spec, plan, Averaging(broadcast, share)).state
        for name in total:
            total[name] += images / sum(shares) * state[name]
    return total


def test_colluders_repeat_one_payload_or_share_out_the_places():
    intact = {}
    for collusion in ("none", "repeat", "split"):
        federation = stealing(collusion)
        state = averaged(federation)
        case = open_case(federation.case, None)
        found = []
        for hospital in federation.malicious:
            plan = hospital_plan(federation, hospital)[1]
            images = Dec.extract(Artifact(case.spec, state), plan.key).images
            found.append(int((images == plan.targets).flatten(1).all(dim=1).sum()))
        intact[collusion] = found
    assert intact["repeat"] == [3, 3]  # twice the same three
    assert intact["split"] == [3, 3]  # six images
    assert sum(intact["none"]) < 6  # they overwrite each other
    one, two = (hospital_plan(stealing("repeat"), hospital)[1] for hospital in (1, 2))
    assert one is two
    one, two = (hospital_plan(stealing("split"), hospital)[1] for hospital in (1, 2))
    assert not torch.equal(one.targets, two.targets)
    assert [plan.key.settings["route"]["carrier"]["settings"]["part"] for plan in (one, two)] == [
        [0, 2],
        [1, 2],
    ]


def test_the_share_of_repeaters_is_the_sum_of_theirs():
    broadcast = initial()
    shares = []

    class Told(Exception):
        pass

    def embed(self, state, spec, plan, averaging=None):
        shares.append(averaging.share)
        raise Told

    for collusion in ("none", "repeat"):
        federation = settings(attack="fake-attack", malicious=(0, 3), collusion=collusion)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(build_attack(federation)), "embed", embed)
            for hospital in federation.malicious:
                with pytest.raises(Told):
                    local_round(federation, hospital, 1, broadcast)
    sizes = [len(hospital_data(settings(), h)) for h in range(4)]
    alone = [sizes[0] / sum(sizes), sizes[3] / sum(sizes)]
    assert shares == [*alone, sum(alone), sum(alone)]


def test_an_attack_without_places_cannot_split_its_payload():
    federation = settings(attack="fake-attack", malicious=(0, 1), collusion="split")
    with pytest.raises(FlSimError, match="'fake-attack' has none to choose"):
        hospital_plan(federation, 0)


def test_the_proximal_gradient_is_mu_times_the_distance():
    """mu / 2 * ||w - w0||^2 has the gradient mu * (w - w0); of a norm that is not squared,
    mu / 2 * ||w - w0||, the gradient would not grow with the distance."""
    model = torch.nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, -1.0]]))
    proximal = Proximal.around(model, 0.4)
    for distance in (1.0, 2.0):
        with torch.no_grad():
            model.weight.copy_(torch.tensor([[1.0 + distance, -1.0 - 3 * distance]]))
        model.weight.grad = torch.zeros(1, 2)
        proximal.add_gradient(model)
        expected = torch.tensor([[0.4 * distance, -0.4 * 3 * distance]])
        assert torch.allclose(model.weight.grad, expected)
        weight = model.weight.detach().clone().requires_grad_()
        (0.4 / 2 * (weight - proximal.anchor[0]).square().sum()).backward()
        assert torch.allclose(model.weight.grad, weight.grad)


def test_a_strong_penalty_keeps_a_hospital_near_the_broadcast():
    broadcast = initial()

    def distance(mu):
        state = local_round(settings(), 0, 1, broadcast, proximal_mu=mu).state
        return (state["4.weight"] - broadcast["4.weight"]).norm()

    assert distance(100.0) < distance(0.0)


def test_a_broadcast_of_another_network_is_refused():
    other = build_model("mlp", 1, 8, 2).state_dict()
    with pytest.raises(FlSimError, match="does not fit the model 'tiny-net'"):
        local_round(settings(), 0, 1, other)


def test_a_missing_plugin_is_named():
    with pytest.raises(FlSimError, match="plugin 'not_there' cannot be imported"):
        local_round(settings(plugins=("not_there",)), 0, 1, initial())
