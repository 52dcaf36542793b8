"""The review server: who may see, who may decide."""

import http.client
import json
import shutil
import socket
import threading

import pytest
from report_runs import small_run

from u2s_datasets.errors import UsageError
from u2s_datasets.report.decisions import DECISIONS_FILE, Decision, read_decisions
from u2s_datasets.report.folder import RunFolder
from u2s_datasets.report.originals import Originals
from u2s_datasets.report.server import ADDRESS, ReviewServer


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return small_run(tmp_path_factory.mktemp("small"))


@pytest.fixture
def server(small, tmp_path):
    run = RunFolder(shutil.copytree(small[0], tmp_path / "run"))
    originals = shutil.copytree(small[1], tmp_path / "originals")
    with ReviewServer(run, Originals(run, str(originals))) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def ask(server, method, path, body=None, **headers):
    connection = http.client.HTTPConnection(ADDRESS, server.server_address[1], timeout=20)
    sent = {name.replace("_", "-"): value for name, value in headers.items() if value is not None}
    connection.request(method, path, body, sent)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer, content


def decide(server, body, **changes):
    headers = {"Origin": server.origin, "Content_Type": "application/json", **changes}
    body = body if isinstance(body, (str, bytes)) else json.dumps(body)
    answer, content = ask(server, "POST", f"/{server.token}/decisions", body, **headers)
    return answer.status, json.loads(content)


def test_the_page_and_its_rows(server, capfd):
    answer, page = ask(server, "GET", f"/{server.token}/")
    assert answer.status == 200
    assert b"data:image/webp" not in page  # no row travels with the page
    assert answer.headers["Cache-Control"] == "no-store"
    assert "frame-ancestors 'none'" in answer.headers["Content-Security-Policy"]
    assert answer.headers["Referrer-Policy"] == "same-origin"
    answer, row = ask(server, "GET", f"/{server.token}/rows/0")
    assert answer.status == 200
    assert json.loads(row)["before"].startswith("data:image/webp")
    for path in (
        "rows/8",
        "rows/-1",
        "rows/",
        "rows/x",
        "rows/%D9%A3",
        "settings.yaml",
        "../run",
    ):
        assert ask(server, "GET", f"/{server.token}/{path}")[0].status == 404
    assert capfd.readouterr() == ("", "")


def test_it_listens_to_this_computer_only(server, small):
    assert server.server_address[0] == "127.0.0.1"
    assert server.url.startswith(f"http://127.0.0.1:{server.server_address[1]}/")
    assert len(server.token) >= 43
    with pytest.raises(UsageError, match="choose another --port"):
        ReviewServer(RunFolder(small[0]), None, server.server_address[1])


@pytest.mark.parametrize(
    "path", ["/", "/rows/0", "/wrong/", "/wrong/rows/0", "", "//", "/{start}/", "/{token}x/", "/%00/"]
)
def test_without_the_token_there_is_nothing(path, server):
    path = path.format(token=server.token, start=server.token[:-1])
    answer, content = ask(server, "GET", path)
    assert answer.status == 404
    assert server.token.encode() not in content


def test_a_foreign_name_that_resolves_here_is_turned_away(server):
    port = server.server_address[1]
    for host in (f"evil.example:{port}", "127.0.0.1", f"127.0.0.1.evil.example:{port}", f"localhost:{port}"):
        answer, content = ask(server, "GET", f"/{server.token}/", Host=host)
        assert answer.status == 421
        assert b"Before" not in content
    with socket.create_connection((ADDRESS, port)) as raw:  # two of them, or none
        for hosts in (f"Host: 127.0.0.1:{port}\r\nHost: evil.example\r\n", ""):
            with socket.create_connection((ADDRESS, port)) as raw:
                raw.sendall(f"GET /{server.token}/ HTTP/1.1\r\n{hosts}\r\n".encode())
                assert b" 421 " in raw.recv(200)


def test_a_decision_comes_from_the_page_or_not_at_all(server):
    good = {"number": 0, "decision": "withhold"}
    refused = [
        ({"Origin": None}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": server.origin + ".evil.example"}, 403),
        ({"Origin": server.origin.replace("127.0.0.1", "localhost")}, 403),
        ({"Sec_Fetch_Site": "cross-site"}, 403),
        ({"Sec_Fetch_Site": "same-site"}, 403),
        ({"Host": "evil.example"}, 421),
        ({"Content_Type": "text/plain"}, 415),
        ({"Content_Type": "application/x-www-form-urlencoded"}, 415),
    ]
    for changes, status in refused:
        assert decide(server, good, **changes)[0] == status, changes
    for path in ("/wrong/decisions", "/decisions", f"/{server.token}/", f"/{server.token}/rows/0"):
        headers = {"Origin": server.origin, "Content_Type": "application/json"}
        assert ask(server, "POST", path, json.dumps(good), **headers)[0].status == 404
    for body, status in (
        ("{", 400), ([1], 400), ({}, 400), ({"number": 0}, 400), ({"number": 0, "decision": "burn"}, 400),
        ({"number": 0, "decision": []}, 400), ({"number": 8, "decision": "redo"}, 404), ({"number": True, "decision": "redo"}, 404),
        ("x" * 5000, 413), (b"\xff\xfe", 400),
    ):  # fmt: skip
        assert decide(server, body)[0] == status, body
    for method in ("PUT", "DELETE", "OPTIONS", "HEAD"):
        assert ask(server, method, f"/{server.token}/decisions")[0].status in (501,)
    assert not (server.run.path / DECISIONS_FILE).exists()
    assert decide(server, good) == (200, {"decision": "withhold"})
    assert read_decisions(server.run.path) == {("train", 0): Decision.WITHHOLD}
    assert decide(server, {"number": 0, "decision": None}) == (200, {"decision": None})
    assert read_decisions(server.run.path) == {}


def test_decisions_at_the_same_time_are_all_kept(server):
    threads = [
        threading.Thread(target=decide, args=(server, {"number": n, "decision": "accept"})) for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert read_decisions(server.run.path) == {("train", n): Decision.ACCEPT for n in range(8)}


def test_a_swapped_original_is_not_shown(server, tmp_path):
    one, two = tmp_path / "originals/b/0.png", tmp_path / "originals/b/4.png"
    content = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(content)
    answer, row = ask(server, "GET", f"/{server.token}/rows/4")
    assert answer.status == 409
    assert "not the one that the run saw" in json.loads(row)["error"]
    assert b"data:image" not in row
    assert ask(server, "GET", f"/{server.token}/rows/0")[0].status == 200


def test_a_decision_that_can_not_be_written_is_told(server):
    (server.run.path / DECISIONS_FILE).write_text("{")
    status, answer = decide(server, {"number": 0, "decision": "accept"})
    assert (status, "damaged" in answer["error"]) == (409, True)
    with pytest.raises(UsageError, match="damaged"):
        ReviewServer(server.run, None)
