import subprocess
import sys
from pathlib import Path


def test_recorded_openseed_is_matched_in_every_tensor(shared_dir):
    check = Path(__file__).parent / "check.py"
    case = shared_dir / "golden/openseed/case_a"
    done = subprocess.run(
        [sys.executable, check, "openseed", case], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("ok  ") == 25
