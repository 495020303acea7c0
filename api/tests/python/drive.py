"""Drives a QMP server through a mirror and a migration with qemu.qmp; prints what it saw."""

import asyncio
import sys

from qemu.qmp import EventListener, ExecuteError, QMPClient


async def until(listener, wanted):
    """The events up to and including the wanted one."""
    seen = []
    async for event in listener:
        seen.append(event)
        if wanted(event):
            return seen


def states(events, name):
    return [e["data"]["status"] for e in events if e["event"] == name]


async def mirror(client):
    target = {
        "driver": "raw",
        "node-name": "target",
        "file": {"driver": "file", "filename": "/tmp/copy-é.raw"},
    }
    await client.execute("blockdev-add", target)
    with client.listener() as listener:
        await client.execute(
            "blockdev-mirror",
            {"job-id": "m", "device": "disk0", "target": "target", "sync": "full"},
        )
        seen = await until(listener, lambda e: e["event"] == "BLOCK_JOB_READY")
        jobs = await client.execute("query-block-jobs")
        assert [j["ready"] for j in jobs] == [True], jobs
        assert jobs[0]["len"] == jobs[0]["offset"], jobs
        await client.execute("block-job-complete", {"device": "m"})
        null = lambda e: e["event"] == "JOB_STATUS_CHANGE" and e["data"]["status"] == "null"
        seen += await until(listener, null)
    completed = [e for e in seen if e["event"] == "BLOCK_JOB_COMPLETED"]
    assert len(completed) == 1 and "error" not in completed[0]["data"], completed
    disks = await client.execute("query-block")
    assert disks[0]["inserted"]["node-name"] == "target", disks
    print("mirror", *states(seen, "JOB_STATUS_CHANGE"))


async def migrate(client):
    events = {"capability": "events", "state": True}
    await client.execute("migrate-set-capabilities", {"capabilities": [events]})
    await client.execute("migrate-set-parameters", {"max-bandwidth": 2**30, "downtime-limit": 100})
    done = lambda e: e["event"] == "MIGRATION" and e["data"]["status"] == "completed"
    with client.listener() as listener:
        await client.execute("migrate", {"uri": "tcp:there:4444"})
        seen = await until(listener, done)
    info = await client.execute("query-migrate")
    assert info["status"] == "completed" and info["downtime"] == 3, info
    status = await client.execute("query-status")
    assert status["status"] == "postmigrate", status
    print("migrated", *states(seen, "MIGRATION"))


async def main(path):
    client = QMPClient("test")
    await client.connect(path)
    assert "ferry" in client.greeting.QMP.version["package"], client.greeting
    print("greeted")
    names = {c["name"] for c in await client.execute("query-commands")}
    schema = await client.execute("query-qmp-schema")
    assert names == {e["name"] for e in schema if e["meta-type"] == "command"}
    try:
        await client.execute("nosuch")
    except ExecuteError as error:
        print("refused", error.error_class)
    await client.execute("cont")
    await mirror(client)
    await migrate(client)
    await client.execute("quit")
    print("quit")
    try:
        await client.disconnect()
    except EOFError:
        pass  # The server ended first, as it was asked to.


asyncio.run(main(sys.argv[1]))
