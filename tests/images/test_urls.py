"""Images as messages name them: data URLs, files, and the web where it is allowed."""

import base64
import contextlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from atp_cpp.errors import AtpError, ImageError
from atp_cpp.images import urls as image_urls
from atp_cpp.images.load import load_image
from atp_cpp.images.urls import MAX_REDIRECTS, load_url


class Web:
    """A web server on this machine; `answers` by path, `asked` in order."""

    def __init__(self):
        self.answers, self.asked, self.release = {}, [], threading.Event()
        web = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def do_GET(self):
                web.asked.append(self.path)
                path = self.path.partition("?")[0]
                if path.startswith("/hop/"):
                    n = int(path.removeprefix("/hop/"))
                    self.send_response(302)
                    self.send_header("Location", f"/hop/{n - 1}" if n else "/scene.png")
                    self.end_headers()
                elif path == "/file":
                    self.send_response(302)
                    self.send_header("Location", "file:///etc/passwd")
                    self.end_headers()
                elif path == "/slow":
                    self.send_response(200)
                    self.end_headers()
                    self.wfile.write(b"x")
                    self.wfile.flush()
                    web.release.wait(30)
                elif path == "/drip":
                    self.send_response(200)
                    self.end_headers()
                    with contextlib.suppress(ConnectionError):
                        while not web.release.wait(0.05):
                            self.wfile.write(b"x")
                            self.wfile.flush()
                elif path in web.answers:
                    self.send_response(200)
                    self.end_headers()
                    self.wfile.write(web.answers[path])
                else:
                    self.send_error(404)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()


@pytest.fixture
def web(monkeypatch, scene):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    web = Web()
    web.answers["/scene.png"] = scene.read_bytes()
    yield web
    web.release.set()
    web.server.shutdown()
    web.server.server_close()


def refused(url, kind=ImageError, **options):
    with pytest.raises(kind) as caught:
        load_url(url, **options)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
    return str(caught.value)


def data_url(content, head="data:image/png;base64"):
    return f"{head},{base64.b64encode(content).decode()}"


def test_every_way_to_name_a_file_gives_the_same_pixels(scene):
    expected = load_image(scene)
    content = scene.read_bytes()
    wrapped = data_url(content)
    wrapped = wrapped[:60] + "\n " + wrapped[60:]
    for url in (
        str(scene), scene.as_uri(), scene.as_uri().replace("file://", "file://localhost"),
        data_url(content), data_url(content, "DATA:image/png;charset=x;BASE64"), wrapped,
        data_url(content).replace("+", "%2B").replace("=", "%3D"),
    ):  # fmt: skip
        np.testing.assert_array_equal(load_url(url), expected)


def test_file_urls_are_unquoted(scene):
    odd = scene.with_name("a b%é#?.png")
    odd.write_bytes(scene.read_bytes())
    np.testing.assert_array_equal(load_url(odd.as_uri()), load_image(scene))
    np.testing.assert_array_equal(load_url(str(odd)), load_image(scene))


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("data:image/png,abc", "expected data:image/TYPE;base64"),
        ("data:image/png;base64", "expected data:image/TYPE;base64"),
        ("data:image/png;base64,ab*c", "base64 is damaged"),
        ("data:image/png;base64,abc", "base64 is damaged"),
        ("data:image/png;base64,é", "base64 is damaged"),
        ("data:image/png;base64,", "0 bytes"),
        (data_url(b"%PDF-1.4"), "a PDF document"),
        ("ftp://host/cat.png", "got the scheme ftp"),
        ("file://server/cat.png", "three slashes"),
        ("file:///no/such.png", "no such file"),
        ("/no/such.png", "no such file"),
    ],
)
def test_what_names_no_image(url, says):
    assert says in refused(url)


def test_long_data_is_not_printed_and_not_taken(monkeypatch):
    monkeypatch.setattr(image_urls, "MAX_BYTES", 1 << 20)
    assert "expected at most 1 MiB, got 2" in refused(data_url(bytes(2 << 20)))


def test_the_web_is_asked_only_where_allowed(web, scene):
    said = refused(f"{web.url}/scene.png?key=secret", AtpError)
    assert "allow_http=True" in said
    assert "secret" not in said
    assert web.asked == []
    got = load_url(f"{web.url}/scene.png?key=secret", allow_http=True)
    np.testing.assert_array_equal(got, load_image(scene))


def test_redirects_are_followed_to_a_limit(web, scene):
    got = load_url(f"{web.url}/hop/{MAX_REDIRECTS - 1}", allow_http=True)
    np.testing.assert_array_equal(got, load_image(scene))
    said = refused(f"{web.url}/hop/{MAX_REDIRECTS}", allow_http=True)
    assert f"more than {MAX_REDIRECTS} redirects" in said


def test_a_redirect_cannot_lead_to_a_file(web):
    assert "cannot be downloaded" in refused(f"{web.url}/file", allow_http=True)


def test_what_the_web_may_answer(web, monkeypatch):
    web.answers |= {"/page": b"<!DOCTYPE html><p>no", "/big": bytes(3000), "/none": b""}
    assert f"{web.url}/gone: the server answered 404" in refused(f"{web.url}/gone", allow_http=True)
    said = refused(f"{web.url}/page", allow_http=True)
    assert said.startswith(f"{web.url}/page: ") and "an HTML page" in said
    assert "got 0 bytes" in refused(f"{web.url}/none", allow_http=True)
    monkeypatch.setattr(image_urls, "MAX_BYTES", 2999)
    assert "got more" in refused(f"{web.url}/big", allow_http=True)


def test_a_slow_answer_is_given_up(web, monkeypatch):
    monkeypatch.setattr(image_urls, "STEP_S", 0.2)
    assert "no answer within 0.2 s" in refused(f"{web.url}/slow", allow_http=True)


def test_content_that_drips_is_given_up(web, monkeypatch):
    monkeypatch.setattr(image_urls, "TIMEOUT_S", 0.3)
    assert "no whole answer within 0.3 s" in refused(f"{web.url}/drip", allow_http=True)


def test_nobody_there(web):
    web.server.shutdown()
    web.server.server_close()
    assert "cannot be downloaded" in refused(f"{web.url}/scene.png", allow_http=True)
    assert "cannot be downloaded" in refused("http://", allow_http=True)


def test_without_httpx(monkeypatch):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(image_urls, "import_module", missing)
    assert 'pip install "atp_cpp[http]"' in refused("http://x/y.png", AtpError, allow_http=True)
