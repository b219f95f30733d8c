import pytest

from pipelines.engine.distributed import Group, ProcessPlace, first_host, read_place
from pipelines.errors import ConfigError

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}
SLURM = {"SLURM_PROCID": "5", "SLURM_NTASKS": "8", "SLURM_LOCALID": "2", "SLURM_NODEID": "1"}
OPENMPI = {
    "OMPI_COMM_WORLD_RANK": "2",
    "OMPI_COMM_WORLD_SIZE": "3",
    "OMPI_COMM_WORLD_LOCAL_RANK": "0",
}


def numbers(place: ProcessPlace) -> tuple[str, int, int, int]:
    return place.family, place.rank, place.world_size, place.local_rank


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, ("single", 0, 1, 0)),
        (TORCHRUN, ("torchrun", 3, 4, 1)),
        (SLURM, ("slurm", 5, 8, 2)),
        (OPENMPI, ("openmpi", 2, 3, 0)),
        (TORCHRUN | SLURM | OPENMPI, ("torchrun", 3, 4, 1)),
        (SLURM | OPENMPI, ("slurm", 5, 8, 2)),
        ({"RANK": "1"} | SLURM, ("slurm", 5, 8, 2)),
    ],
)
def test_first_complete_family_names_the_process(
    environment: dict[str, str], expected: tuple[str, int, int, int]
) -> None:
    assert numbers(read_place(environment)) == expected


def test_master_follows_from_node_list_and_job_id() -> None:
    several = {"SLURM_NNODES": "2", "SLURM_JOB_NODELIST": "gpu[07-09,12],x3"}
    place = read_place(SLURM | several | {"SLURM_JOB_ID": "45001"})
    assert (place.master_addr, place.master_port) == ("gpu07", 10000 + 45001 % 20000)


def test_one_node_talks_to_itself() -> None:
    place = read_place(SLURM | {"SLURM_NNODES": "1", "SLURM_JOB_NODELIST": "unresolvable"})
    assert place.master_addr == "127.0.0.1"


def test_given_master_wins() -> None:
    given = {"MASTER_ADDR": "head", "MASTER_PORT": "4711", "SLURM_JOB_ID": "9"}
    place = read_place(SLURM | {"SLURM_NNODES": "2", "SLURM_JOB_NODELIST": "a,b"} | given)
    assert (place.master_addr, place.master_port) == ("head", 4711)


@pytest.mark.parametrize(
    ("node_list", "host"),
    [
        ("n0", "n0"),
        ("n0,n1", "n0"),
        ("node[01-03,7]", "node01"),
        ("node[7,9]-ib,other", "node7-ib"),
        ("a-b[003-004],c", "a-b003"),
    ],
)
def test_first_host_of_a_node_list(node_list: str, host: str) -> None:
    assert first_host(node_list) == host


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (TORCHRUN | {"RANK": "4"}, r"RANK must be in 0..WORLD_SIZE-1; got 4 of 4"),
        (TORCHRUN | {"RANK": "one"}, "RANK must be an integer; got 'one'"),
        (TORCHRUN | {"MASTER_PORT": "x"}, "MASTER_PORT must be an integer; got 'x'"),
        (SLURM | {"SLURM_NNODES": "2"}, "SLURM_JOB_NODELIST must name a host; got ''"),
        (OPENMPI | {"OMPI_COMM_WORLD_LOCAL_SIZE": "1"}, "Pass `-x MASTER_ADDR=<first host>`"),
    ],
)
def test_broken_environment_is_refused(environment: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_place(environment)


def test_unresolvable_master_is_named() -> None:
    place = ProcessPlace(world_size=2, master_addr="no-such-host.invalid")
    with pytest.raises(ConfigError, match=r"got 'no-such-host.invalid'.*Set MASTER_ADDR"):
        Group(place, is_cuda=False)


def test_group_of_one_answers_by_itself() -> None:
    group = Group(ProcessPlace(), is_cuda=False)
    assert group.any_is_true(True)
    assert not group.any_is_true(False)
    assert group.gather("x") == ["x"]
    assert group.main_does(lambda: 3) == 3
    group.barrier()
    group.close()
