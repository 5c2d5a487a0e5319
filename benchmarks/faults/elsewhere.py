"""Faults that need a part of the service to be replaced, and are tested one by one."""

#: What happens, what follows, and the test.
TESTED: tuple[tuple[str, str, str], ...] = (
    (
        "a text fails in the engine, in a batch of 500",
        "only its request fails",
        "tests/scheduler/test_scheduler.py::test_only_the_failing_group_of_500_fails",
    ),
    (
        "a text needs more memory than there is",
        "only its request fails, and later batches are smaller",
        "tests/scheduler/test_scheduler.py::test_a_text_that_exceeds_memory_fails_only_its_group",
    ),
    (
        "the engine returns NaN",
        "an error; nothing is cached",
        "tests/scheduler/test_scheduler.py::test_a_non_finite_vector_is_an_inference_error",
    ),
    (
        "a text hangs the engine",
        "the replica is unhealthy, and replaced",
        "tests/standalone/test_hang.py::test_a_batch_that_takes_too_long_ends_the_process",
    ),
    (
        "a deployment with a fallback hangs",
        "the fallback answers until it answers again",
        "tests/on_ray/test_fallback.py::test_a_deployment_that_hangs_is_left_out_until_it_answers",
    ),
    (
        "a region of a provider fails",
        "the next one of the `fallback` answers",
        "tests/standalone/test_providers.py::"
        "test_the_second_region_answers_while_the_first_one_fails",
    ),
    (
        "a provider hangs",
        "504 at the deadline",
        "tests/standalone/test_providers.py::test_a_hanging_provider_keeps_the_deadline",
    ),
    (
        "the clock of a machine is wrong",
        "costs are kept",
        "tests/access/test_shared_ledger.py::test_a_machine_with_a_wrong_clock_deletes_nothing",
    ),
)

NODES = """\
The kernel kills a replica for lack of memory as `kill-embedder` and `kill-embedserver` do.

A worker and the head of a cluster, with Ray's state on a Valkey server, are killed, restarted and
taken off the network by `python -m benchmarks.nodes`:
[When machines fail](../docs/deploy.md#when-machines-fail). A clock that jumps on a running service
is not measured."""
