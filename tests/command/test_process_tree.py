import signal
import subprocess
import sys

import psutil

from serve_app.command.process_tree import command_line, is_running, process_name, send_signal


def test_a_process_that_has_ended_has_no_name_and_no_command_line() -> None:
    code = "print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()  # Linux shows no command line in the moment of the start
        process = psutil.Process(child.pid)
        assert command_line(process)[1:] == ["-c", code]
        assert process_name(process) != ""
        assert is_running(process)
    assert (command_line(process), process_name(process)) == ([], "")
    assert not is_running(process)
    send_signal([process], signal.SIGTERM)
