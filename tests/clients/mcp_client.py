"""Talks to `ardent mcp` with the protocol's own Python client: over standard input and output, and over HTTP, in the older
and in the newer form of the protocol.

    mcp_client.py ARDENT URL TOKEN

A branch `work` of a production with a table `users` of 2,000 rows is there. Prints "ok" at the end.
"""

import asyncio
import os
import sys

from mcp import StdioServerParameters
from mcp.client import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared._httpx_utils import create_mcp_http_client
from mcp.types import ElicitResult

ARDENT, URL, TOKEN = sys.argv[1:]
QUESTIONS = []


async def yes(_context, params):
    QUESTIONS.append(params.message)
    return ElicitResult(action="accept", content={"confirm": True})


def said(result, is_error=False):
    assert bool(result.is_error) == is_error, result
    # The client has compared it with the tool's output schema.
    return result.structured_content


async def converse(client, name):
    tools = {tool.name: tool for tool in (await client.list_tools()).tools}
    assert len(tools) == 13 and all(tool.output_schema for tool in tools.values()), tools
    assert tools["query"].annotations.read_only_hint and tools["delete_branch"].annotations.destructive_hint

    progress = []

    async def on_progress(_done, _total, message):
        progress.append(message)

    made = said(await client.call_tool("create_branch", {"branch": name, "from": "work"}))
    assert made["created"] and made["branch"]["parent"] == "work", made
    rows = said(await client.call_tool("query", {"branch": name, "sql": "select count(*) from users"}))
    assert rows["rows"] == [["2000"]], rows
    error = said(await client.call_tool("query", {"branch": name, "sql": "select 1; drop table users"}), is_error=True)
    assert error["error"]["sqlstate"] == "42601", error
    error = said(await client.call_tool("query", {"branch": name, "sql": "select pg_switch_wal()"}), is_error=True)
    assert error["error"]["sqlstate"] == "25006", error
    said(await client.call_tool("execute", {"branch": name, "sql": "delete from users where id = 1"}))
    diff = said(await client.call_tool("diff", {"branch": name, "table": "users"}))
    assert [row["change"] for row in diff["rows"]] == ["delete"], diff
    report = said(
        await client.call_tool(
            "rehearse", {"branch": name, "sql": "create index on users (name); drop table users"}, progress_callback=on_progress
        )
    )
    assert report["succeeded"] and any(line.startswith("2/2") for line in progress), (report, progress)

    # Taken back: the statement ends, and the connection goes on.
    sleeping = asyncio.create_task(client.call_tool("query", {"branch": name, "sql": "select pg_sleep(300)", "timeout_s": 600}))
    await asyncio.sleep(1)
    sleeping.cancel()
    for _ in range(100):
        asleep = said(
            await client.call_tool("query", {"branch": name, "sql": "select count(*) from pg_stat_activity where wait_event = 'PgSleep'"})
        )
        if asleep["rows"] == [["0"]]:
            break
        await asyncio.sleep(0.1)
    else:
        raise AssertionError("a statement goes on though its call was taken back")

    asked = len(QUESTIONS)
    done = said(await client.call_tool("apply", {"branch": name, "to": "work"}))
    assert done["state"] == "done" and "1 deleted" in done["message"], done
    done = said(await client.call_tool("delete_branch", {"branch": name}))
    assert done["state"] == "done", done
    assert len(QUESTIONS) == asked + 2 and name in QUESTIONS[-1], QUESTIONS
    # As it was, for the next one.
    said(await client.call_tool("reset_branch", {"branch": "work"}))


async def main():
    here = StdioServerParameters(command=ARDENT, args=["mcp"], env=dict(os.environ))
    for number, mode in enumerate(["legacy", "2026-07-28"]):
        async with Client(here, mode=mode, elicitation_callback=yes) as client:
            await converse(client, f"by-stdio-{number}")
        async with create_mcp_http_client(headers={"Authorization": f"Bearer {TOKEN}"}) as http:
            async with Client(streamable_http_client(URL, http_client=http), mode=mode, elicitation_callback=yes) as client:
                await converse(client, f"by-http-{number}")

    # Strangers, pages in a browser, and other names for this host.
    call = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
    accept = {"Accept": "application/json, text/event-stream"}
    known = {**accept, "Authorization": f"Bearer {TOKEN}"}
    async with create_mcp_http_client() as http:
        for headers, status in [
            (accept, 401),
            ({**accept, "Authorization": "Bearer nobodys"}, 401),
            ({**known, "Origin": "http://evil.example"}, 403),
            ({**known, "Host": "evil.example"}, 403),
        ]:
            answer = await http.post(URL, json=call, headers=headers)
            assert answer.status_code == status, (headers, answer.status_code, answer.text)
    print("ok")


asyncio.run(main())
