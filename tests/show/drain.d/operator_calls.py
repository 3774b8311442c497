"""Further operator requests: closing one session, draining a service; which requests are refused,
and which clients may not send them.
"""

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor

from evidence import fleet, network, scripted, sessions
from evidence.checks import check, say
from evidence.sessions import (
    MOVED,
    RESTART,
    are_undisturbed,
    call,
    call_admin,
    check_closes,
    connect,
    connect_many,
    wait_until_ended,
)

CLOSED = (RESTART, "closed by an operator")
SOURCE = "127.0.0.9"  # address of the one client that is closed
TOKEN = "an-operators-t0ken"
OUTSIDE = "192.0.2.1"  # reserved for documentation (RFC 5737)
NO_POD = 'services = ["http://127.0.0.1:1"]'


async def show(short):
    await show_one(20 if short else 100)
    await show_service()
    await show_errors()
    await show_token()
    await show_outside()


async def show_one(count):
    say(f"DELETE of one of {count + 1} sessions, the one from {SOURCE}")
    pods = await sessions.start(4)
    async with fleet.balancing(pods) as balancer:
        others = await connect_many(balancer, count)
        [chosen] = await connect_many(balancer, 1, source=SOURCE)
        _, listed = await call_admin(balancer, "GET", "/api/sessions")
        found = [one for one in listed if one["client"] == SOURCE]
        say(f"         GET /api/sessions lists {len(listed)}, of them {found}")
        path = f"/api/sessions/{found[0]['id']}"
        status, reply = await call_admin(balancer, "DELETE", path)
        check(status == 200 and reply["id"] == found[0]["id"], f"DELETE {path}: {status}")
        await wait_until_ended([chosen])
        check_closes([chosen], CLOSED, "its client")
        closes = [close for pod in pods for close in pod.closes]
        check(closes == [(sessions.AWAY, CLOSED[1])], f"the pods receive {closes}")
        check(
            are_undisturbed(others) and await sessions.all_talk(others),
            f"the other {count} stay and echo",
        )
        await sessions.wait_until_counted(balancer)
        status, reply = await call_admin(balancer, "DELETE", path)
        check(status == 404, f"the second time: {status} {reply}")
    fleet.stop(*pods)


async def show_service():
    say(
        "two services of two pods and 40 sessions each; one is drained over its pod_drain_time = "
        "1s, and undrained"
    )
    pods = await sessions.start(4)
    urls = [f'["{pods[at].url}", "{pods[at + 1].url}"]' for at in (0, 2)]
    text = "\n".join(
        [
            f"[services.chat]\nbackends = {urls[0]}\npod_drain_time = "
            f'"1s"\n[services.video]\nbackends = {urls[1]}',
            '[[routes]]\npath_prefix = "/chat"\nservice = "chat"\n[[routes]]\nservice = "video"',
        ]
    )
    async with fleet.balancing(text) as balancer:
        chat, video = (
            await connect_many(balancer, 40, path="/chat"),
            await connect_many(balancer, 40),
        )
        status, reply = await call_admin(balancer, "POST", "/api/services/chat/drain")
        states = {one["address"]: one["state"] for one in reply}
        check(
            status == 200 and states == {pod.address: "draining" for pod in pods[:2]},
            f"{status} {states}",
        )
        refused = await connect(balancer.address, "/chat")
        wait = refused.answer and refused.answer.get("retry-after")
        check(
            refused.status == 503 and wait,
            f"a new client of the service gets {refused.status} with Retry-After: {wait}",
        )
        await connect_many(balancer, 1)
        await wait_until_ended(chat)
        check_closes(chat, MOVED, "clients of the service")
        check(
            are_undisturbed(video) and await sessions.all_talk(video),
            f"all {len(video)} clients of the other service stay and echo",
        )
        status, _ = await call_admin(balancer, "POST", "/api/services/chat/undrain")
        check(status == 200, f"undrain: {status}")
        await connect_many(balancer, 4, path="/chat")
    fleet.stop(*pods)


async def show_errors():
    say("requests for unknown objects, and invalid requests")
    pods = await sessions.start(1)
    async with fleet.balancing(pods) as balancer:
        [client] = await connect_many(balancer, 1)
        drain = f"/api/backends/{pods[0].address}/drain"
        for method, path, wanted in [
            ("POST", "/api/backends/127.0.0.1:1/drain", 404),
            ("POST", "/api/services/unknown/drain", 404),
            ("DELETE", "/api/sessions/0", 404),
            ("DELETE", "/api/sessions/one", 404),
            ("POST", f"{drain}?over=soon", 400),
            ("POST", f"{drain}?over=-1s", 400),
            ("POST", f"{drain}?over=", 400),
        ]:
            status, reply = await call_admin(balancer, method, path)
            check(
                status == wanted and reply.get("error"),
                f"{method} {path}: {status} {reply.get('error')!r}",
            )
        status, *_ = await call(balancer.address, "POST", drain)
        check(
            status == 200,
            f"on the traffic listener it is forwarded to a pod as any other request: {status}",
        )
        state = fleet.metrics_entry(balancer, pods[0])["state"]
        check(
            state != "draining" and await client.talks(),
            f"then the pod is {state}, and its session echoes",
        )
    fleet.stop(*pods)


async def show_token():
    pods = await sessions.start(1)
    for token in ("", TOKEN):
        say(f"admin.token = {token!r}, from this machine")
        async with fleet.balancing(pods, ADMIN__TOKEN=token) as balancer:
            clients = await connect_many(balancer, 4)
            await show_access(balancer, pods[0], clients, token)
    fleet.stop(*pods)


async def show_access(balancer, pod, clients, token):
    """Sends each request that changes something, first without access and then with it."""
    _, listed = await call_admin(balancer, "GET", "/api/sessions")
    check(
        len(listed) == len(clients),
        f"GET /api/sessions needs no token, and lists {len(listed)} sessions",
    )
    calls = [
        ("POST", f"/api/backends/{pod.address}/drain?over=1s"),
        ("POST", "/api/services/default/drain?over=1s"),
        ("DELETE", f"/api/sessions/{listed[0]['id']}"),
        ("PUT", "/api/log-level"),
    ]
    wrong = [
        [],
        [f"Authorization: Bearer {token}x"],
        [f"Authorization: Basic {token}"],
        [f"X-Token: {token}"],
    ]
    for fields in wrong if token else [["Origin: https://elsewhere.example"]]:
        answers = {(await call_admin(balancer, *one, *fields, body=b"info"))[0] for one in calls}
        check(answers == {401 if token else 403}, f"every other request with {fields}: {answers}")
    state = fleet.metrics_entry(balancer, pod)["state"]
    check(
        state != "draining" and are_undisturbed(clients) and await sessions.all_talk(clients),
        f"they had no effect: the pod is {state}, all sessions echo",
    )
    right = [f"Authorization: Bearer {token}"] if token else []
    answers = {
        (await call_admin(balancer, *one, *right, body=b"info"))[0] for one in reversed(calls)
    }
    check(answers == {200}, f"with {right}: {answers}")
    check(await wait_until_ended(clients), "now all sessions are closed")


async def show_outside():
    say(f"requests from {OUTSIDE}, which is not a loopback address")
    for token, fields, wanted in [
        ("", [], 403),
        (TOKEN, [], 401),
        (TOKEN, [f"Authorization: Bearer {TOKEN}"], 200),
    ]:
        with ThreadPoolExecutor(1) as thread:
            reply = await asyncio.get_running_loop().run_in_executor(thread, outside, token, fields)
        if reply is None:
            check(not os.environ.get("CI"), "skipped: needs the right to create network namespaces")
        else:
            check(
                reply == (200, wanted),
                f"token {token!r}, {fields}: GET and POST are answered {reply}",
            )


def outside(token, fields):
    """Returns the answers to a reading and a changing request from a network namespace of this
    thread, or None if namespaces are not allowed.
    """
    if not network.leave_host():
        return None
    network.ip("address", "add", f"{OUTSIDE}/32", "dev", "lo")
    balancer = scripted.ConfiguredBalancer(NO_POD, ADMIN__LISTEN="0.0.0.0:0", ADMIN__TOKEN=token)
    balancer.admin = balancer.admin.replace("0.0.0.0", OUTSIDE)

    async def ask():
        looked, _ = await call_admin(balancer, "GET", "/api/backends")
        changed, _ = await call_admin(balancer, "POST", "/api/services/default/drain", *fields)
        return looked, changed

    statuses = asyncio.run(ask())
    balancer.stop()
    return statuses
