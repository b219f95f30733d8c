import pytest

from pipelines import pretrain


def test_help_teaches_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        pretrain.main(["--help"])
    assert left.value.code == 0
    text = capsys.readouterr().out
    assert "75 saved, wants to be requeued" in text
    assert "torchrun --nproc-per-node 2" in text


def test_unknown_key_leaves_with_2_and_names_the_nearest(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert pretrain.main(["--set", "optimizer.learning_rat=1"]) == 2
    assert "nearest key is 'optimizer.learning_rate'" in capsys.readouterr().err


def test_unknown_option_leaves_with_2() -> None:
    with pytest.raises(SystemExit) as left:
        pretrain.main(["--recipee", "scenes"])
    assert left.value.code == 2


def test_configuration_is_printed_without_training(capsys: pytest.CaptureFixture[str]) -> None:
    assert pretrain.main(["--print-config", "--set", "steps=77"]) == 0
    assert '"steps": 77' in capsys.readouterr().out


def test_the_list_of_options_is_frozen(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        pretrain.main(["--help"])
    text = capsys.readouterr().out.split("examples:")[0]
    words = {word.strip("[],") for word in text.split() if word.strip("[],").startswith("--")}
    assert words == {
        *("--help", "--recipe", "--set", "--shards", "--output-dir", "--run-name", "--seed"),
        *("--resume", "--init-from", "--smoke", "--print-config", "--dry-run"),
        *("--gpus", "--gpu"),
    }


def test_missing_data_leaves_with_3(
    tmp_path: object, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = f"{tmp_path}/nothing"
    small = ["--set", "model.backbone.weights=random", "--set", "optimizer.ema_decay=0"]
    code = pretrain.main(["--shards", missing, "--output-dir", f"{tmp_path}/run", *small])
    assert code == 3
    assert "nothing" in capsys.readouterr().err
