"""Scenarios: one cell of a study, as read from TOML, checked in every part before anything runs."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, Self, TypeVar, get_args

from pydantic import Field, model_validator

from clients.settings import MOST_ROUNDS, HospitalSettings, Together
from experiments.run.identity import identity
from experiments.run.toml_file import read_toml
from fl_sim.attacks.base import ATTACKS, Attack
from fl_sim.case import CaseSettings, model_settings
from fl_sim.component import Component
from fl_sim.data import dataset_settings, published_name, task_family
from fl_sim.data.partitions import MOST_HOSPITALS, PartitionSettings
from fl_sim.data.splits import HeldOutSettings
from fl_sim.defenses.base import DEFENSES, Defense
from fl_sim.engine.base import EngineSettings
from fl_sim.errors import FlSimError, did_you_mean, shown
from fl_sim.inversion.search import InversionSettings
from fl_sim.membership_inference.base import MembershipSettings, method_of
from fl_sim.overrides import apply_override
from fl_sim.plain import check_plain
from fl_sim.registry import import_plugins
from fl_sim.rehearsal import AttackerSettings
from fl_sim.settings import MOST_EPOCHS, Seed, Settings, parse
from fl_sim.training import TrainingSettings
from strategies.base import STRATEGIES, check_strategy

Mode = Literal["federated", "centralized"]
NONE = "none"
MOST_THREADS = 1024
SettingsT = TypeVar("SettingsT", bound=Settings)


class FederationSettings(Together):
    """The federation of a scenario.

    Args:
        hospitals: how many.
        malicious: numbers, from 0, of those that attack.
        rounds: how many.
        strategy: registered aggregation strategy and its settings.
        partition: how the training images are dealt out.
        cohort: hospitals sampled in each round; all where not given.
        absent: numbers of those that take no part, though images are dealt out to them. With the
            malicious ones' numbers it is the control of every federation: what the honest
            hospitals reach without them.
        defend: when the aggregate is cleaned: before ``"every"`` broadcast, before every n-th, or
            only the ``"last"`` model, which is exported.
        boost: factor on malicious updates (model replacement).
        update_norm: L2 norm that malicious updates are scaled down to after boosting, or
            ``"honest"`` for the norm of the update they would have sent honestly.
        malicious_rounds: rounds, from 1, in which they attack, or ``"last"`` or ``"alternate"``
            (the last round, the one before the last but one, ...); all where not given.
        collusion: ``"none"``; ``"repeat"``: all malicious hospitals send the first one's images, so
            that their shares of the average add up; ``"split"``: each sends its own at places that
            no other uses. See :class:`clients.settings.HospitalSettings`.
        engine: Ray or in-process, and what a hospital may use of the machine.
    """

    hospitals: int = Field(4, ge=1, le=MOST_HOSPITALS)
    malicious: tuple[int, ...] = (0,)
    rounds: int = Field(8, ge=1, le=MOST_ROUNDS)
    strategy: Component = Component(name="fedavg")
    cohort: int | None = Field(None, ge=1)
    absent: tuple[int, ...] = ()
    defend: Literal["every", "last"] | int = "every"
    malicious_rounds: tuple[int, ...] | Literal["last", "alternate"] | None = None
    engine: EngineSettings = EngineSettings()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        outside = [h for h in self.malicious if not 0 <= h < self.hospitals]
        if outside:
            raise ValueError(
                f"malicious names hospital {outside[0]}, but {self.hospitals} hospitals are "
                f"numbered 0 to {self.hospitals - 1}"
            )
        if len(set(self.malicious)) < len(self.malicious):
            raise ValueError("malicious names a hospital twice")
        gone = [h for h in self.absent if not 0 <= h < self.hospitals]
        if gone:
            raise ValueError(
                f"absent names hospital {gone[0]}, but {self.hospitals} hospitals are numbered 0 "
                f"to {self.hospitals - 1}"
            )
        if not self.present:
            raise ValueError("absent names every hospital; leave one that trains")
        if self.cohort is not None and self.cohort > len(self.present):
            raise ValueError(
                f"cohort is {self.cohort}, but there are {len(self.present)} hospitals"
            )
        late = [r for r in self.attack_rounds or () if not 1 <= r <= self.rounds]
        if late:
            raise ValueError(f"malicious_rounds names round {late[0]} of 1 to {self.rounds}")
        if isinstance(self.defend, int) and self.defend < 1:
            raise ValueError('defend is "every", "last" or a number of rounds from 1')
        return self

    @property
    def present(self) -> tuple[int, ...]:
        """Numbers of the hospitals that take part."""
        return tuple(number for number in range(self.hospitals) if number not in self.absent)

    @property
    def attack_rounds(self) -> tuple[int, ...] | None:
        """The rounds in which malicious hospitals attack; ``None`` for all."""
        if self.malicious_rounds == "last":
            return (self.rounds,)
        if self.malicious_rounds == "alternate":
            return tuple(range(2 - self.rounds % 2, self.rounds + 1, 2))
        return self.malicious_rounds


class MeasureSettings(Settings):
    """What is measured, and how often.

    Args:
        every: measure every n-th round; the last is always measured.
        scratch_epochs: epochs of the utility floor, the same network trained from scratch on the
            held-out set alone; 0 leaves the floor out.
        usability_epochs: epochs of the usability test, the same network trained on the recovered
            images, raw and restored (and once on the true ones, and on these with shuffled labels)
            and measured on the test set; 0 leaves it out.
        columns: images shown in the picture.
        keep: model files kept in a federation: of the ``"last"`` measured round or of ``"all"``; or
            of the run when it has ended, the last ``"release"`` alone, where there are many runs.
    """

    every: int = Field(1, ge=1)
    scratch_epochs: int = Field(20, ge=0, le=MOST_EPOCHS)
    usability_epochs: int = Field(0, ge=0, le=MOST_EPOCHS)
    columns: int = Field(8, ge=1, le=64)
    keep: Literal["last", "all", "release"] = "last"


class Scenario(Settings):
    """One cell of a study. Build it with :meth:`create`, :meth:`from_toml`, or from a mapping.

    Args:
        mode: ``"federated"`` or ``"centralized"``.
        dataset: registered dataset or path of an ``.npz`` file, and its settings.
        model: registered model and its settings.
        seed: everything random follows from it.
        data: sizes of the held-out, public and other sets.
        training: the task's training; ``epochs`` are per round in a federation (1 by default).
        attack: what the stranger's code does, or ``None``.
        attacker: what he knows, and does with what he extracted.
        defense: what the data owner, or the server, does at release, or ``None``.
        federation: only in federated mode.
        measure: what is measured.
        membership: how membership is inferred from what each stage answers; not at all by default.
        inversion: how images of its classes are looked for in each stage; not at all by default.
        threads: of the data owner's or server's computation; where not given, all
            cores or what OMP_NUM_THREADS says. Hospitals of a federation use one each.
        device: where a centralized run trains, and where a defence works: ``"cpu"``, ``"cuda"``,
            or ``"auto"`` for a GPU where there is one.
        plugins: modules to import first, which register components from outside this project.
    """

    mode: Mode
    dataset: Component
    model: Component
    seed: Seed = 0
    data: HeldOutSettings = HeldOutSettings()
    training: TrainingSettings = TrainingSettings()
    attack: Component | None = None
    attacker: AttackerSettings = AttackerSettings()
    defense: Component | None = None
    federation: FederationSettings | None = None
    measure: MeasureSettings = MeasureSettings()
    membership: MembershipSettings | None = None
    inversion: InversionSettings | None = None
    threads: int | None = Field(None, ge=1, le=MOST_THREADS)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    plugins: tuple[str, ...] = ()

    @classmethod
    def create(cls, **values: Any) -> "Scenario":
        """Build a scenario from keywords, written as in TOML.

        For example ``Scenario.create(mode="centralized", dataset="phantoms", model="cnn",
        attack={"name": "transpose", "images": 32}, defense="lwlrd")``.

        Raises:
            FlSimError: one sentence for the first thing that is wrong.
        """
        return cls.from_mapping(values)

    @classmethod
    def from_toml(cls, path: Path, overrides: Iterable[str] = ()) -> "Scenario":
        """Read a scenario file.

        Args:
            path: of the TOML file.
            overrides: ``"key=value"`` with dotted keys, for example ``"attack.images=32"``.

        Raises:
            FlSimError: if the file is missing or wrong in any part.
        """
        values = read_toml(path, "scenario")
        for override in overrides:
            apply_override(values, override)
        return cls.from_mapping(values)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> "Scenario":
        """Build a scenario from nested mappings, as TOML gives them; see :meth:`create`."""
        plain = _with_names(values)
        check_plain(plain, "The scenario")
        import_plugins(plain.get("plugins", ()))
        _refuse_unknown(plain, cls.model_fields, "The scenario")
        for key in ("mode", "dataset", "model"):
            if key not in plain:
                raise FlSimError(f"The scenario lacks the key '{key}'.")
        if plain["mode"] not in get_args(Mode):
            raise FlSimError(
                f"The scenario's 'mode' is {shown(plain['mode'])}."
                f"{did_you_mean(str(plain['mode']), get_args(Mode))}"
            )
        federated = plain["mode"] == "federated"
        if not federated and "federation" in plain:
            raise FlSimError(
                'A scenario with mode = "centralized" has no [federation]; remove it, or set '
                'mode = "federated".'
            )
        plain["dataset"] = _component(plain["dataset"], "[dataset]", dataset_settings)
        plain["model"] = _component(plain["model"], "[model]", model_settings)
        plain["attack"] = _optional(
            plain.get("attack"), "[attack]", lambda name: ATTACKS.get(name).Settings
        )
        plain["defense"] = _optional(
            plain.get("defense"), "[defense]", lambda name: DEFENSES.get(name).Settings
        )
        plain["training"] = _section(
            plain, "training", TrainingSettings, epochs=1 if federated else 8
        )
        plain["data"] = _section(plain, "data", HeldOutSettings)
        plain["attacker"] = _section(plain, "attacker", AttackerSettings)
        plain["measure"] = _section(plain, "measure", MeasureSettings)
        plain["membership"] = _membership(plain.get("membership"))
        if plain.get("inversion") is not None:
            plain["inversion"] = _section(plain, "inversion", InversionSettings)
        plain["federation"] = _federation(plain.get("federation", {})) if federated else None
        if federated and plain["attacker"].hospital is not None:
            raise FlSimError(
                "[attacker] hospital is for a data lake; in a federation [federation] malicious "
                "says whose images are stolen."
            )
        scenario = parse(cls, plain, "The scenario")
        scenario._refuse_absent_attackers()
        scenario._refuse_attacked_outside()
        scenario._refuse_uploads_in_a_lake()
        scenario._refuse_sealed_broadcasts()
        scenario._refuse_inverted_masks()
        return scenario

    def _refuse_absent_attackers(self) -> None:
        """Refuse an attack by a hospital that takes no part."""
        gone = set(self.attackers) & set(self.federation.absent if self.federation else ())
        if gone:
            raise FlSimError(
                f"[federation] absent and malicious both name hospital {min(gone)}; a federation "
                f'without its malicious hospitals has attack = "none".'
            )

    def _refuse_attacked_outside(self) -> None:
        """Refuse an attacker whose data from outside are called as those that he attacks.

        What they hold is compared when they are loaded, see :func:`experiments.run.preflight`.
        """
        attack = self.make_attack()
        for external in attack.outside_data if attack else ():
            published = {published_name(choice.name) for choice in (external, self.dataset)}
            same = external.name == self.dataset.name and (
                external.typed(dataset_settings(external.name), "[attack] external")
                == self._dataset_settings()
            )
            if same or (len(published) == 1 and None not in published):
                raise FlSimError(
                    f"[attack] external is {shown(external.name)}, the dataset that is attacked: "
                    f"what is trained on it outside would know what is stolen inside; name "
                    f"another dataset."
                )

    def _refuse_inverted_masks(self) -> None:
        """Refuse to look for images of classes where classes are those of pixels."""
        family = task_family(self.dataset.name, self.dataset.settings)
        if self.inversion is not None and family == "segmentation":
            raise FlSimError(
                "[inversion] looks for images of classes, and this task's classes are of pixels; "
                "leave it out."
            )

    def _refuse_uploads_in_a_lake(self) -> None:
        """Refuse a defence that learns from hospitals' uploads where there are none."""
        defense = self.make_defense()
        if defense is not None and self.defense and defense.needs_uploads and not self.federation:
            raise FlSimError(
                f"The defence '{self.defense.name}' learns from the hospitals' uploads, and a data "
                f'lake has one model; set mode = "federated", or take consistent_distillation.'
            )

    def _refuse_sealed_broadcasts(self) -> None:
        """Refuse a defence that seals what hospitals would have to train on with."""
        defense, federation = self.make_defense(), self.federation
        if defense is None or self.defense is None or not defense.seals:
            return
        if federation is not None and federation.defend != "last":
            raise FlSimError(
                f"The defence '{self.defense.name}' seals the model's head, which hospitals could "
                f'not train on with; set [federation] defend = "last".'
            )

    @property
    def case(self) -> CaseSettings:
        """The data and the network."""
        return CaseSettings(dataset=self.dataset, model=self.model, data=self.data, seed=self.seed)

    @property
    def attackers(self) -> tuple[int, ...]:
        """Numbers of the hospitals that attack; ``(0,)`` for an attacked data lake."""
        if self.attack is None:
            return ()
        return (0,) if self.federation is None else self.federation.malicious

    @property
    def aggregator(self) -> str:
        """The strategy's name, or ``"none"`` in centralized mode."""
        return self.federation.strategy.name if self.federation else NONE

    @property
    def identity(self) -> str:
        """A readable name with a hash of everything that results depend on, except the seed."""
        return identity(self)

    def _dataset_settings(self) -> Settings:
        """Return the dataset's keys with every default, also of those that the file decides."""
        return self.dataset.typed(dataset_settings(self.dataset.name), "[dataset]")

    def make_attack(self) -> Attack[Any] | None:
        """Build the attack."""
        return self.attack.build(ATTACKS, "[attack]") if self.attack else None

    def make_defense(self) -> Defense[Any] | None:
        """Build the defence."""
        return self.defense.build(DEFENSES, "[defense]") if self.defense else None

    def hospital_settings(self, data_root: Path | None) -> HospitalSettings:
        """What hospitals are told.

        Raises:
            FlSimError: in centralized mode, which has no hospitals.
        """
        federation = self.federation
        if federation is None:
            raise FlSimError("A centralized scenario has no hospitals.")
        return HospitalSettings(
            **{name: getattr(federation, name) for name in Together.model_fields},
            case=self.case,
            hospitals=federation.hospitals,
            rounds=federation.rounds,
            training=self.training,
            attack=self.attack,
            malicious=federation.malicious,
            malicious_rounds=federation.attack_rounds,
            data_root=str(data_root.resolve()) if data_root else None,
            plugins=self.plugins,
        )


def _with_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a scenario's tables with the name of its model, where that is an object."""
    plain = dict(values)
    model = plain.get("model")
    table = dict(model) if isinstance(model, Mapping) else {"name": model}
    if callable(table.get("name")):  # as networks are, too
        from fl_sim.models.lent import lend_for_scenario

        plain["model"] = {**table, "name": lend_for_scenario(table["name"])}
    return plain


def _component(value: Any, where: str, settings_of: Any) -> Component:
    component = Component.of(value, where)
    return component.of_kind(settings_of(component.name), where)


def _optional(value: Any, where: str, settings_of: Any) -> Component | None:
    if value is None or Component.of(value, where).name == NONE:
        return None
    return _component(value, where, settings_of)


def _split(value: Any, where: str) -> tuple[str, dict[str, Any]]:
    """A component is its name, or a table with its name and settings, or a Component."""
    choice = Component.of(value, where)
    return choice.name, dict(choice.settings)


def _table(value: Any, where: str) -> Mapping[str, Any]:
    if isinstance(value, Settings):
        return value.model_dump(exclude_unset=True)
    if not isinstance(value, Mapping):
        raise FlSimError(f"{where} should be a table, not {shown(value)}.")
    return value


def _section(
    values: Mapping[str, Any], key: str, kind: type[SettingsT], **defaults: Any
) -> SettingsT:
    """Read one table of a scenario, absent or not."""
    where = f"[{key}]"
    return parse(kind, {**defaults, **_table(values.get(key, {}), where)}, where)


def _membership(value: Any) -> MembershipSettings | None:
    """Read [membership]: a table, the name of an attack, or nothing."""
    if value is None or value == NONE:
        return None
    table = {"name": value} if isinstance(value, str) else _table(value, "[membership]")
    if table.get("name") == NONE:
        return None
    settings = parse(MembershipSettings, table, "[membership]")
    method_of(settings.name, settings.mode, settings.references)
    return settings


def _federation(value: Any) -> FederationSettings:
    """Read [federation], where settings of the strategy, partition and engine may stand flat."""
    table = dict(_table(value, "[federation]"))
    parts: dict[str, tuple[str, dict[str, Any], type[Settings]]] = {}
    strategy, settings = _split(table.pop("strategy", "fedavg"), "[federation] strategy")
    parts["strategy"] = (strategy, settings, STRATEGIES.get(strategy).settings)
    scheme, settings = _renamed(table.pop("partition", "iid"), "scheme", "[federation] partition")
    parts["partition"] = (scheme, settings, PartitionSettings)
    engine, settings = _renamed(table.pop("engine", "ray"), "engine", "[federation] engine")
    parts["engine"] = (engine, settings, EngineSettings)
    for key in [k for k in table if k not in FederationSettings.model_fields]:
        owner = next((p for p in parts.values() if key in p[2].model_fields), None)
        if owner is None:
            valid = [*FederationSettings.model_fields]
            valid += [k for p in parts.values() for k in p[2].model_fields]
            raise FlSimError(f"[federation] has no key {shown(key)}.{did_you_mean(key, valid)}")
        owner[1][key] = table.pop(key)
    name, settings, kind = parts["strategy"]
    table["strategy"] = chosen = Component(name=name, settings=settings).of_kind(
        kind, "[federation] strategy"
    )
    table["partition"] = parse(
        PartitionSettings, {"scheme": scheme, **parts["partition"][1]}, "[federation] partition"
    )
    table["engine"] = parse(
        EngineSettings, {"engine": engine, **parts["engine"][1]}, "[federation] engine"
    )
    federation = parse(FederationSettings, table, "[federation]")
    replies = federation.cohort or len(federation.present)
    check_strategy(name, chosen.settings, replies, "[federation] strategy")
    return federation


def _renamed(value: Any, key: str, where: str) -> tuple[str, dict[str, Any]]:
    if isinstance(value, Settings):
        settings = value.model_dump(exclude_unset=True)
        return settings.pop(key), settings
    if isinstance(value, Mapping) and key in value:
        value = {"name": value[key], **{k: v for k, v in value.items() if k != key}}
    return _split(value, where)


def _refuse_unknown(values: Mapping[str, Any], valid: Iterable[str], where: str) -> None:
    for key in values:
        if key not in valid:
            raise FlSimError(f"{where} has no key {shown(key)}.{did_you_mean(key, valid)}")
