import pytest
import torch

from pipelines.engine.distributed import Group, ProcessPlace
from pipelines.engine.progress import describe_row, duration
from pipelines.engine.recorder import Recorder, StepRecord
from pipelines.errors import NonFiniteLossError


def record(step: int, **terms: float) -> StepRecord:
    named = {name.replace("__", "/"): torch.tensor(value) for name, value in terms.items()}
    return StepRecord(
        step=step,
        keys=(f"shard-0/{step}", f"shard-1/{step}"),
        terms=named,
        loss=torch.stack(list(named.values())).sum(),
        gradient_norm=torch.tensor(1.5),
        learning_rate=0.25,
        data_seconds=0.01,
    )


@pytest.fixture
def recorder() -> Recorder:
    return Recorder(group=Group(ProcessPlace(), is_cuda=False))


def test_every_step_has_a_row_and_the_last_has_the_timing(recorder: Recorder) -> None:
    recorder.add(record(1, seg__dice__0=1.0, seg__dice__1=2.0, text__match__0=4.0))
    recorder.add(record(2, seg__dice__0=1.0))
    first, last = recorder.rows()
    assert first == {
        "step": 1,
        "loss": 7.0,
        "learning_rate": 0.25,
        "gradient_norm": 1.5,
        "seg/dice": 3.0,
        "loss/seg": 3.0,
        "text/match": 4.0,
        "loss/text": 4.0,
    }
    assert {"seconds_per_step", "data_wait", "images_per_second"} <= last.keys()
    assert recorder.rows() == []


def test_terms_of_ranks_are_averaged_and_add_up_to_the_loss() -> None:
    class Two(Group):
        def gather(self, value: list) -> list:
            other = [{"seg/dice/0": 3.0, "loss": 3.0, "gradient_norm": 1.5}]
            return [value, other]

    place = ProcessPlace(rank=0, world_size=2)
    group = Two.__new__(Two)
    group.place = place
    recorder = Recorder(group=group)
    recorder.add(record(1, seg__dice__0=1.0, seg__extra__0=2.0))
    (row,) = recorder.rows()
    assert (row["loss"], row["seg/dice"], row["seg/extra"]) == (3.0, 2.0, 1.0)


def test_non_finite_loss_names_step_task_keys_and_terms(recorder: Recorder) -> None:
    recorder.add(record(6, seg__dice__0=1.0))
    recorder.add(record(7, seg__dice__0=float("nan"), text__match__0=1.0))
    with pytest.raises(NonFiniteLossError) as caught:
        recorder.rows()
    message = str(caught.value)
    assert "step 7" in message
    assert "task seg " in message
    assert "seg/dice/0" in message
    assert "shard-0/7, shard-1/7" in message
    assert "text/match" not in message


def test_non_finite_gradient_stops_as_well(recorder: Recorder) -> None:
    bad = record(3, seg__dice__0=1.0)
    bad.gradient_norm = torch.tensor(float("inf"))
    recorder.add(bad)
    with pytest.raises(NonFiniteLossError, match="gradient_norm"):
        recorder.rows()


def test_line_has_what_a_person_watches() -> None:
    row = {
        "step": 12000,
        "loss": 3.2134,
        "loss/seg": 1.9,
        "loss/text": 0.8,
        "learning_rate": 1e-4,
        "gradient_norm": 2.0,
        "seconds_per_step": 0.61,
        "data_wait": 0.02,
        "images_per_second": 842.0,
    }
    assert describe_row(row, num_steps=200000, memory_gib=38.1) == (
        "step 12000/200000  loss 3.213 (seg 1.90 text 0.80)  lr 1.00e-04  grad 2.00  "
        "0.61 s/it  data 2 %  842.0 img/s  38.1 GiB  eta 1d07h"
    )


@pytest.mark.parametrize(
    ("seconds", "text"), [(5, "0m05s"), (125, "2m05s"), (7265, "2h01m"), (90000, "1d01h")]
)
def test_duration_shows_two_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text
