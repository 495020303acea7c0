"""Drives a whole mirror and a whole migration with the client that QEMU's project publishes.

Arguments: the source's and the destination's QMP socket, the mirror's target file, the migration's URI.
"""

import asyncio
import sys

from qemu.qmp import ExecuteError, QMPClient


async def next_event(events, name):
    """The data of the next event with this name."""
    async for event in events:
        if event["event"] == name:
            return event["data"] if "data" in event else None


async def mirror(source, target):
    with source.listener() as events:
        await source.execute(
            "blockdev-add",
            {
                "driver": "raw",
                "node-name": "copy",
                "file": {"driver": "file", "filename": target},
            },
        )
        await source.execute(
            "blockdev-mirror",
            {"job-id": "job0", "device": "disk0", "target": "copy", "sync": "full"},
        )
        await next_event(events, "BLOCK_JOB_READY")
        jobs = await source.execute("query-block-jobs")
        assert jobs[0]["ready"] is True, jobs
        await source.execute("block-job-complete", {"device": "job0"})
        completed = await next_event(events, "BLOCK_JOB_COMPLETED")
        assert "error" not in completed, completed
        assert await source.execute("query-block-jobs") == []
    print("mirrored", completed["len"])


async def migrate(source, destination, uri):
    capability = {"capability": "events", "state": True}
    await source.execute("migrate-set-capabilities", {"capabilities": [capability]})
    with source.listener() as events, destination.listener() as arrivals:
        await source.execute("migrate", {"uri": uri})
        states = []
        while not states or states[-1] not in ("completed", "failed"):
            states.append((await next_event(events, "MIGRATION"))["status"])
        assert states[0] == "setup" and states[-1] == "completed", states
        await next_event(arrivals, "RESUME")
    status = await source.execute("query-status")
    assert status["status"] == "postmigrate" and not status["running"], status
    status = await destination.execute("query-status")
    assert status["status"] == "running" and status["running"], status
    try:
        await source.execute("cont")
    except ExecuteError as refused:
        assert refused.error_class == "GenericError", refused
    else:
        raise AssertionError("the source may not go on")
    print("migrated", states)


async def main(source_path, destination_path, target, uri):
    source, destination = QMPClient("source"), QMPClient("destination")
    await source.connect(source_path)
    await destination.connect(destination_path)
    await mirror(source, target)
    await migrate(source, destination, uri)
    await source.disconnect()
    await destination.disconnect()


asyncio.run(asyncio.wait_for(main(*sys.argv[1:]), 60))
