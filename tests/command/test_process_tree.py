import signal
import subprocess
import sys

import psutil

from serve_app.command.process_tree import command_line, is_running, process_name, send_signal


def test_a_process_that_has_ended_has_no_name_and_no_command_line() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        process = psutil.Process(child.pid)
        assert command_line(process)[1:] == ["-c", "input()"]
        assert process_name(process) != ""
        assert is_running(process)
    assert (command_line(process), process_name(process)) == ([], "")
    assert not is_running(process)
    send_signal([process], signal.SIGTERM)
