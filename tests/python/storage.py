"""Drives `ferry storage` with the client that QEMU's project publishes: nodes, an export, snapshots, a mirror.

Arguments: the QMP socket, a folder with a `disk.raw` of 1 MiB.
"""

import asyncio
import sys

from qemu.qmp import ExecuteError, QMPClient


async def next_event(events, name):
    """The data of the next event with this name."""
    async for event in events:
        if event["event"] == name:
            return event["data"]


async def create(daemon, events, path, size):
    """Makes a qcow2 image by two jobs."""
    file = {"driver": "file", "filename": path}
    images = [dict(file, size=0), {"driver": "qcow2", "file": file, "size": size}]
    for number, options in enumerate(images):
        job = f"create{number}"
        await daemon.execute("blockdev-create", {"job-id": job, "options": options})
        while (await next_event(events, "JOB_STATUS_CHANGE"))["status"] != "concluded":
            pass
        jobs = await daemon.execute("query-jobs")
        assert "error" not in jobs[0], jobs
        await daemon.execute("job-dismiss", {"id": job})


async def snapshots(daemon, folder):
    """Puts an overlay over the exported disk, with a bitmap at the same moment."""
    overlay = {
        "node-name": "disk",
        "snapshot-file": f"{folder}/over.qcow2",
        "snapshot-node-name": "over",
    }
    actions = [
        {"type": "blockdev-snapshot-sync", "data": overlay},
        {"type": "block-dirty-bitmap-add", "data": {"node": "over", "name": "since"}},
    ]
    await daemon.execute("transaction", {"actions": actions})
    exports = await daemon.execute("query-block-exports")
    assert exports[0]["node-name"] == "over", exports
    await daemon.execute("blockdev-snapshot-internal-sync", {"device": "over", "name": "s"})
    try:
        await daemon.execute("blockdev-snapshot-internal-sync", {"device": "over", "name": "s"})
    except ExecuteError as refused:
        assert refused.error_class == "GenericError", refused
    else:
        raise AssertionError("two snapshots of one name")
    nodes = await daemon.execute("query-named-block-nodes")
    over = next(node for node in nodes if node["node-name"] == "over")
    assert over["image"]["snapshots"][0]["name"] == "s", over
    assert over["backing_file_depth"] == 1 and over["dirty-bitmaps"][0]["name"] == "since", over
    print("snapshots taken")


async def mirror(daemon, events, folder):
    """Moves the exported disk to an image of its own."""
    await create(daemon, events, f"{folder}/copy.qcow2", 1 << 20)
    file = {"driver": "file", "filename": f"{folder}/copy.qcow2"}
    await daemon.execute("blockdev-add", {"driver": "qcow2", "node-name": "copy", "file": file})
    await daemon.execute(
        "blockdev-mirror", {"job-id": "m", "device": "over", "target": "copy", "sync": "full"}
    )
    await next_event(events, "BLOCK_JOB_READY")
    await daemon.execute("block-job-complete", {"device": "m"})
    completed = await next_event(events, "BLOCK_JOB_COMPLETED")
    assert "error" not in completed, completed
    exports = await daemon.execute("query-block-exports")
    assert exports[0]["node-name"] == "copy", exports
    print("mirrored", completed["len"])


async def main(path, folder):
    daemon = QMPClient("storage")
    await daemon.connect(path)
    with daemon.listener() as events:
        file = {"driver": "file", "filename": f"{folder}/disk.raw"}
        await daemon.execute("blockdev-add", {"driver": "raw", "node-name": "disk", "file": file})
        address = {"type": "unix", "data": {"path": f"{folder}/nbd"}}
        await daemon.execute("nbd-server-start", {"addr": address})
        export = {"type": "nbd", "id": "e", "node-name": "disk", "writable": True}
        await daemon.execute("block-export-add", export)
        await snapshots(daemon, folder)
        await mirror(daemon, events, folder)
        await daemon.execute("block-export-del", {"id": "e"})
        await next_event(events, "BLOCK_EXPORT_DELETED")
        await daemon.execute("quit")
    try:
        await daemon.disconnect()
    except EOFError:
        pass  # The daemon was gone first.


asyncio.run(asyncio.wait_for(main(*sys.argv[1:]), 60))
