#!/usr/bin/python3 -IS
"""A tiny ACME client (RFC 8555): certificates from Let's Encrypt and its like by http-01.

It needs Python's standard library and the openssl program. What it touches: it reads the account
key and the CSR, writes and removes files in the challenge folder, and talks https to the CA. It
is the protocol half of letsencrypt-tiny, and a script and module of its own, with the command
line and the get_crt() of acme-tiny 5.0.3:

  acme_tiny.py --account-key account.key --csr domain.csr --acme-dir /srv/acme-challenge > crt

API: get_crt(), main(), AcmeError, ToolError, LOGGER. All else may change.
"""
import os, re, sys, time
from collections import namedtuple

__version__ = "1.0"
DEFAULT_CA = "https://acme-v02.api.letsencrypt.org"  # deprecated, as in acme-tiny
DEFAULT_DIRECTORY_URL = "https://acme-v02.api.letsencrypt.org/directory"

REQUEST_SECONDS = 30  # for a whole request, connection and answer
POLL_SECONDS = 90     # for each of: validation, issuance
SELF_CHECK_SECONDS = 10
ANSWER_BYTES = 1000000
BAD_NONCES = 100

# ---- Errors and text ----------------------------------------------------------------------------


class AcmeError(ValueError):
    """The CA refused, or did not answer as RFC 8555 says.

    status: HTTP status (int) or None; type: the problem's type without its URN prefix (str);
    retry_after: seconds (int) the CA asked us to stay away (429 and 503 only), or None.
    """

    def __init__(self, text, status=None, type="", retry_after=None):
        super().__init__(text)
        self.status, self.type, self.retry_after = status, type, retry_after


class ToolError(IOError):
    """The openssl program or a file failed; the text holds its own words."""


def __getattr__(name):  # LOGGER is made when it is asked for: a cron job need not import logging
    if name != "LOGGER":
        raise AttributeError(name)
    import logging
    logger = logging.getLogger(__name__)
    if not logger.handlers:
        logger.addHandler(logging.StreamHandler())
        logger.setLevel(logging.INFO)
    return globals().setdefault("LOGGER", logger)


def printable(text, limit=500):
    """text (any type) from outside as a str for a terminal: control characters, bidi controls and
    surrogates escaped, at most `limit` characters."""
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(text)[:limit + 1])
    return text if len(text) <= limit else text[:limit] + "..."


# ---- openssl, encodings, DER --------------------------------------------------------------------


def openssl(*args, stdin=b""):
    """Run openssl with args (str), give it stdin (bytes), return its stdout (bytes).

    Raises ToolError with its own words. Keys are named by path only; a key with a passphrase
    fails, as there is no terminal to ask at.
    """
    import subprocess
    try:
        done = subprocess.run(("openssl",) + args, input=stdin, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, start_new_session=True, timeout=600)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ToolError("cannot run openssl: %s" % error)
    if done.returncode:
        words = printable(done.stderr.decode("utf-8", "replace").strip().replace("\n", "; "))
        raise ToolError("openssl %s failed: %s" % (args[0], words or "status %s" % done.returncode))
    return done.stdout


def b64(data):
    """data (bytes) as base64url without padding (str), RFC 8555 section 6.1."""
    import base64
    return base64.urlsafe_b64encode(data).decode("ascii").rstrip("=")


def der(data):
    """The DER items in data (bytes) as [(tag, body)]. Raises ValueError."""
    items, start = [], 0
    while start < len(data):
        if start + 2 > len(data):
            raise ValueError("DER is cut short")
        tag, size, start = data[start], data[start + 1], start + 2
        if size >= 0x80:
            if not 0x80 < size <= 0x84:
                raise ValueError("DER length is out of bounds")
            start, size = start + size - 0x80, int.from_bytes(data[start:start + size - 0x80], "big")
        if start + size > len(data):
            raise ValueError("DER is cut short")
        items.append((tag, data[start:start + size]))
        start += size
    return items


def tlv(tag, *parts):
    """One DER item (bytes) of the tag (int) and the joined parts (bytes)."""
    body = b"".join(parts)
    size = len(body).to_bytes(4, "big").lstrip(b"\0") or b"\0"
    return bytes([tag]) + (size if len(body) < 0x80 else bytes([0x80 + len(size)]) + size) + body


def pem(text):
    """The PEM blocks in text as [(label, DER bytes)]. Raises ValueError."""
    import base64
    blocks = re.findall(r"-----BEGIN ([A-Z0-9 ]+)-----([A-Za-z0-9+/=\s]+)-----END \1-----", text)
    if not blocks or len(blocks) != text.count("-----BEGIN"):
        raise ValueError("it is not PEM")
    return [(label, base64.b64decode("".join(body.split()), validate=True))
            for label, body in blocks]


# ---- Keys and certificates ----------------------------------------------------------------------

RSA = bytes.fromhex("2a864886f70d010101")
EC = bytes.fromhex("2a8648ce3d0201")
CURVES = {bytes.fromhex("2a8648ce3d030107"): "ec-p256", bytes.fromhex("2b81040022"): "ec-p384"}
COMMON_NAME, SUBJECT_ALT_NAME = bytes.fromhex("550403"), bytes.fromhex("551d11")

Certificate = namedtuple("Certificate", "names not_before not_after spki issuer subject")


def public_key(text):
    """The SubjectPublicKeyInfo (DER bytes) of a private key in PEM: PKCS#8, PKCS#1 or SEC 1.

    Raises ValueError; a key of another form is read by openssl (ToolError).
    """
    if "ENCRYPTED" in text:
        raise ValueError("it needs a passphrase")
    for label, data in pem(text):
        items = der(der(data)[0][1])
        algorithm = items[1][1] if label == "PRIVATE KEY" else b""
        if label == "RSA PRIVATE KEY" or algorithm and der(algorithm)[0][1] == RSA:
            numbers = items if label == "RSA PRIVATE KEY" else der(der(items[2][1])[0][1])
            key = tlv(0x30, tlv(2, numbers[1][1]), tlv(2, numbers[2][1]))
            return tlv(0x30, tlv(0x30, tlv(6, RSA), tlv(5)), tlv(3, b"\0", key))
        if label == "EC PRIVATE KEY" or algorithm and der(algorithm)[0][1] == EC:
            inner = dict(items if label == "EC PRIVATE KEY" else der(der(items[2][1])[0][1]))
            curve = inner.get(0xa0) or tlv(*der(algorithm)[1])
            if 0xa1 in inner:
                return tlv(0x30, tlv(0x30, tlv(6, EC), curve), inner[0xa1])
    return openssl("pkey", "-pubout", "-outform", "DER", stdin=text.encode())


def key_kind(spki):
    """(type, bits) of a SubjectPublicKeyInfo (DER bytes): ("rsa", 3072), ("ec-p256", 256), ...;
    ("another", 0) for what is not supported. Raises ValueError."""
    algorithm, key = der(der(spki)[0][1])
    oids = [body for _, body in der(algorithm[1])]
    if oids[0] == RSA:
        return "rsa", int.from_bytes(der(der(key[1][1:])[0][1])[0][1], "big").bit_length()
    kind = CURVES.get(oids[1]) if oids[0] == EC else None
    return (kind, int(kind[4:])) if kind else ("another", 0)


def general_names(data):
    """The names (list of str) in the DER of a subjectAltName; what is no DNS name gets its tag."""
    return [body.decode("ascii", "backslashreplace").lower() if tag == 0x82
            else "[%d]%s" % (tag & 0x1f, body.hex()) for tag, body in der(der(data)[0][1])]


def extension_names(extensions):
    """The names in the subjectAltName, critical or not, of a DER list of extensions (bytes)."""
    found = [der(body) for _, body in der(extensions)]
    return [n for items in found if items[0][1] == SUBJECT_ALT_NAME
            for n in general_names(items[-1][1])]


def der_time(item):
    """Seconds since 1970 (int) of a DER UTCTime or GeneralizedTime. Raises ValueError."""
    from datetime import datetime, timezone
    tag, body = item
    if not re.match(rb"[0-9]{12}Z$" if tag == 0x17 else rb"[0-9]{14}Z$", body):
        raise ValueError("a date is not as RFC 5280 says")
    text = body[:-1].decode()
    if tag == 0x17:
        text = ("19" if text >= "50" else "20") + text
    parts = [int(text[:4])] + [int(text[i:i + 2]) for i in range(4, 14, 2)]
    return int(datetime(*parts, tzinfo=timezone.utc).timestamp())


def parse_certificate(data):
    """A Certificate from DER bytes (RFC 5280): names (list of str), not_before and not_after
    (seconds since 1970), spki, issuer and subject (DER bytes). Raises ValueError."""
    try:
        fields = der(der(der(data)[0][1])[0][1])
        fields = fields[1:] if fields[0][0] == 0xa0 else fields
        issuer, validity, subject, spki = fields[2:6]
        dates = [der_time(item) for item in der(validity[1])]
        names = [name for tag, body in fields[6:] if tag == 0xa3
                 for name in extension_names(der(body)[0][1])]
        return Certificate(names, dates[0], dates[1], tlv(*spki), issuer[1], subject[1])
    except (IndexError, OverflowError) as error:
        raise ValueError("it is no X.509 certificate: %s" % error)


def parse_csr(data):
    """(names, spki) of a PKCS#10 request in DER (RFC 2986). Raises ValueError."""
    try:
        _, subject, spki, attributes = der(der(der(data)[0][1])[0][1])[:4]
        rdns = [der(der(pair)[0][1]) for _, pair in der(subject[1])]
        names = [value[1].decode("utf-8", "replace") for oid, value in rdns
                 if oid[1] == COMMON_NAME]
        for _, attribute in der(attributes[1]):
            if der(attribute)[0][1] == bytes.fromhex("2a864886f70d01090e"):  # extensionRequest
                names += extension_names(der(der(attribute)[1][1])[0][1])
        return [n for n in dict.fromkeys(names) if not n.startswith("[")], tlv(*spki)
    except IndexError:
        raise ValueError("it is no certificate request")


def check_chain(text, spki, names, now):
    """The chain in text (PEM) if it is what was asked for, written anew from its blocks.

    spki: DER bytes of our public key; names: list of str; now: seconds since 1970.
    Raises AcmeError: a CA's answer is installed as it is, so it may hold nothing else.
    """
    import base64
    try:
        blocks = pem(text)
        chain = [parse_certificate(data) for _, data in blocks]
    except ValueError as error:
        raise AcmeError("the CA's answer is not a chain of certificates: %s" % error)
    leaf = chain[0]
    for wrong, what in (
            (any(label != "CERTIFICATE" for label, _ in blocks), "holds more than certificates"),
            (leaf.spki != spki, "is for another key"),
            (set(leaf.names) != {n.lower() for n in names},
             "is for other names: %s" % printable(", ".join(leaf.names))),
            (leaf.not_before > now + 3600 or leaf.not_after <= now,
             "is not valid now (from %s to %s): is the clock right?" % (
                 utc(leaf.not_before), utc(leaf.not_after))),
            (any(a.issuer != b.subject for a, b in zip(chain, chain[1:])), "is out of order")):
        if wrong:
            raise AcmeError("the certificate that the CA sent %s; it is not used" % what)
    lines = []
    for _, data in blocks:
        body = base64.b64encode(data).decode("ascii")
        lines += (["-----BEGIN CERTIFICATE-----"]
                  + [body[i:i + 64] for i in range(0, len(body), 64)]
                  + ["-----END CERTIFICATE-----"])
    return "\n".join(lines) + "\n"


def utc(seconds):
    """seconds since 1970 as 2026-11-23 06:32 UTC; also what no calendar holds."""
    try:
        return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))
    except (ValueError, OverflowError, OSError):
        return "%s seconds after 1970" % seconds


class AccountKey:
    """An ACME account key in a PEM file: RSA of 2048 bits or more, P-256 or P-384.

    jwk (dict, RFC 7517), thumbprint (str, RFC 7638), alg (str, RFC 7518). The private key stays
    in its file: openssl signs. Raises ToolError, AcmeError.
    """

    def __init__(self, path):
        import hashlib, json
        try:
            with open(path, encoding="ascii", errors="replace") as file:
                text = file.read()
        except OSError as error:
            openssl("rsa", "-in", path, "-noout")  # its words are what acme-tiny's users know
            raise ToolError("cannot read the account key: %s" % error)
        try:
            spki = public_key(text)
            kind, bits = key_kind(spki)
        except (ValueError, IndexError) as error:
            raise AcmeError("%s is no account key that can be used: %s" % (path, error))
        body = der(der(spki)[0][1])[1][1][1:]
        if kind == "rsa" and bits >= 2048:
            n, e = [b64(number.lstrip(b"\0")) for _, number in der(der(body)[0][1])]
            self.alg, self.jwk, self.size = "RS256", {"e": e, "kty": "RSA", "n": n}, 0
        elif kind in ("ec-p256", "ec-p384") and body[0] == 4:
            self.alg, self.size = "ES" + kind[4:], len(body) // 2
            self.jwk = {"crv": "P-" + kind[4:], "kty": "EC", "x": b64(body[1:1 + self.size]),
                        "y": b64(body[1 + self.size:])}
        else:
            raise AcmeError("%s is no RSA key of 2048 bits or more, nor P-256 or P-384: a CA "
                            "takes no other account key" % path)
        self.path = path
        canonical = json.dumps(self.jwk, sort_keys=True, separators=(",", ":"))
        self.thumbprint = b64(hashlib.sha256(canonical.encode()).digest())

    def sign(self, data):
        """The signature (bytes) of data (bytes) for a JWS: ECDSA as r and s (RFC 7518, 3.4)."""
        made = openssl("dgst", "-sha" + self.alg[2:], "-sign", self.path, stdin=data)
        if self.size:
            made = b"".join(number.lstrip(b"\0").rjust(self.size, b"\0")
                            for _, number in der(der(made)[0][1]))
        return made


# ---- https --------------------------------------------------------------------------------------

Reply = namedtuple("Reply", "status headers body")


def https_opener(ca_bundle=None, proxy=None):
    """A urllib opener for https only, without redirects, that keeps its connections open.

    ca_bundle: path or None (the system's, or SSL_CERT_FILE); proxy: URL or None (https_proxy
    and no_proxy from the environment). Raises OSError for a bundle that cannot be read.
    """
    import http.client, ssl
    import urllib.request as request
    context = ssl.create_default_context(cafile=ca_bundle)

    class Socket(ssl.SSLSocket):  # a read timeout alone lets a drip of bytes go on for ever
        def recv_into(self, *args):
            self.settimeout(max(0.001, handler.deadline - time.monotonic()))
            return super().recv_into(*args)

    class Handler(request.HTTPSHandler):
        deadline, connections = 0, {}

        def https_open(self, req):
            self.deadline = time.monotonic() + REQUEST_SECONDS
            headers = dict(req.unredirected_hdrs, **req.headers)
            tunnel = {k: headers.pop(k) for k in list(headers) if k.lower().startswith("proxy-")}
            key = req.host, req._tunnel_host
            if key not in self.connections:
                made = http.client.HTTPSConnection(req.host, timeout=REQUEST_SECONDS,
                                                   context=context)
                if req._tunnel_host:
                    made.set_tunnel(req._tunnel_host, headers=tunnel)
                self.connections[key] = made
            connection = self.connections[key]
            kept = connection.sock is not None
            try:
                return self.ask(connection, req, headers)
            except (ConnectionError, ssl.SSLError, http.client.BadStatusLine):
                if not kept:
                    raise
                return self.ask(connection, req, headers)  # the server had closed it meanwhile

        def ask(self, connection, req, headers):
            try:
                if connection.sock is not None:
                    connection.sock.settimeout(REQUEST_SECONDS)
                connection.request(req.get_method(), req.selector, req.data, headers)
                return connection.getresponse()
            except BaseException:
                connection.close()
                raise

    context.sslsocket_class = Socket
    handler = Handler(context=context)
    opener = request.OpenerDirector()
    opener.addheaders = [("User-Agent", "letsencrypt-tiny/%s" % __version__),
                         ("Accept-Language", "en")]
    opener.add_handler(request.ProxyHandler({"https": proxy} if proxy else None))
    opener.add_handler(handler)
    return opener


def http_date(text):
    """Seconds since 1970 of an HTTP-date (str), None if it is none."""
    from email.utils import mktime_tz, parsedate_tz
    try:
        return mktime_tz(parsedate_tz(text))
    except (TypeError, ValueError, OverflowError, IndexError):
        return None


def retry_after(headers):
    """Seconds (int) that a Retry-After header (RFC 9110 section 10.2.3) asks for, or None."""
    value = (headers.get("Retry-After") or "").strip()
    if re.match(r"[0-9]{1,12}$", value):
        return int(value)
    until = http_date(value)
    now = http_date(headers.get("Date")) or time.time()
    return None if until is None else max(0, int(until - now))


def problem_text(problem):
    """A problem document (RFC 7807, RFC 8555 section 6.7; any JSON) as one line of text."""
    if not isinstance(problem, dict):
        return printable(problem)
    parts = [problem.get("type"), problem.get("detail")]
    for sub in problem.get("subproblems") or [] if isinstance(
            problem.get("subproblems"), list) else []:
        if isinstance(sub, dict):
            who = sub.get("identifier")
            parts.append("%s: %s" % (who.get("value") if isinstance(who, dict) else "also",
                                     ": ".join(str(sub[k]) for k in ("type", "detail")
                                               if sub.get(k))))
    if problem.get("instance"):
        parts.append("see %s" % problem["instance"])
    return printable("; ".join(str(p) for p in parts if p), 2000) or "no reason given"


# ---- The protocol -------------------------------------------------------------------------------


class Client:
    """One account at one ACME server (RFC 8555).

    url: the directory's; key: AccountKey; account: its URL if it is known; contact: list of URLs;
    log: has .info(text). Every method raises AcmeError for whatever the CA's answers cause.
    skew: seconds that the CA's clock is ahead of ours, None before the first answer.
    """

    def __init__(self, url, key=None, account=None, contact=None, ca_bundle=None, proxy=None,
                 log=None):
        self.url, self.key, self.account, self.contact = url, key, account, contact
        self.opener, self.log = https_opener(ca_bundle, proxy), log
        self.nonce = self.skew = self.links = None

    def info(self, text):
        if self.log:
            self.log.info(text)

    def fetch(self, what, url, body=None, method=None):
        """The CA's Reply to one request. what: for errors; body: bytes of a JWS, or None."""
        import http.client
        from urllib.request import Request
        if not isinstance(url, str) or not url.lower().startswith("https://"):
            raise AcmeError("%s: the CA names an address that is not https: %s" % (
                what, printable(url)))
        headers = {} if body is None else {"Content-Type": "application/jose+json"}
        try:
            response = self.opener.open(Request(url, body, headers, method=method))
            data = response.read(ANSWER_BYTES + 1)
            if response.length and len(data) <= ANSWER_BYTES:
                raise AcmeError("the answer was cut short")
            if len(data) > ANSWER_BYTES:
                raise AcmeError("the answer is longer than %d bytes" % ANSWER_BYTES)
        except (OSError, http.client.HTTPException, ValueError) as error:
            self.opener.close()
            raise AcmeError("%s: no answer from %s: %s" % (what, printable(url), printable(
                getattr(error, "reason", None) or error or type(error).__name__)))
        self.nonce = response.headers.get("Replay-Nonce") or self.nonce
        date = http_date(response.headers.get("Date"))
        if date is not None:
            self.skew = date - time.time()
        if not 200 <= response.status < 300:
            raise self.refusal(what, url, Reply(response.status, response.headers, data))
        return Reply(response.status, response.headers, data)

    def refusal(self, what, url, reply):
        """The AcmeError for a Reply that is no success."""
        problem = {}
        try:
            problem = parse_json(reply)
            text = problem_text(problem)
        except AcmeError:
            text = printable(reply.body.decode("utf-8", "replace").strip(), 200)
        name = problem.get("type")
        name = name.rpartition(":")[2] if isinstance(name, str) else ""
        wait = retry_after(reply.headers) if reply.status in (429, 503) else None
        return AcmeError("%s: the CA refused (%s): %s (%s)" % (
            what, reply.status, text, printable(url)), reply.status, name, wait)

    def directory(self, name=None):
        """The URL (str) of a resource in the directory (section 7.1.1), which is asked once."""
        if self.links is None:
            self.info("Getting directory...")
            self.links = parse_json(self.fetch("getting the directory", self.url))
            self.info("Directory found!")
        return name and field(self.links, name, str, "the directory")

    def post(self, what, url, payload=None):
        """The Reply to a signed request (section 6.2); without payload POST-as-GET (6.3)."""
        import json
        for _ in range(BAD_NONCES + 1):
            if not self.nonce:
                self.fetch("getting a nonce", self.directory("newNonce"), method="HEAD")
            if not self.nonce:
                raise AcmeError("the CA gives no nonce")
            head = {"alg": self.key.alg, "nonce": self.nonce, "url": url}
            head.update({"kid": self.account} if self.account else {"jwk": self.key.jwk})
            text = "" if payload is None else json.dumps(payload)
            protected, body = b64(json.dumps(head).encode()), b64(text.encode())
            signature = b64(self.key.sign(("%s.%s" % (protected, body)).encode()))
            self.nonce = None
            jws = json.dumps({"protected": protected, "payload": body, "signature": signature})
            try:
                return self.fetch(what, url, jws.encode())
            except AcmeError as error:
                if error.type != "badNonce":
                    raise
        raise AcmeError("%s: the CA refused %d nonces" % (what, BAD_NONCES + 1))

    def register(self):
        """Make the account, or find it by its key (sections 7.3, 7.3.1); sets .account."""
        self.info("Registering account...")
        self.account, url = None, self.directory("newAccount")
        payload = {"termsOfServiceAgreed": True}
        try:
            reply = self.post("registering", url, dict(payload, contact=self.contact)
                              if self.contact else payload)
        except AcmeError as error:
            if not self.contact or error.type not in ("invalidContact", "unsupportedContact"):
                raise
            self.info("The CA does not take the contact: %s" % error)
            reply = self.post("registering", url, payload)
        self.account = header(reply, "Location", "the new account")
        self.info("%s Account ID: %s" % ("Registered!" if reply.status == 201 else
                                         "Already registered!", printable(self.account)))
        if self.contact:
            self.update_contact(reply)

    def update_contact(self, reply):
        """Tell an account that was there before its contact; a CA may refuse that."""
        try:
            if reply.status == 200:
                reply = self.post("updating the contact", self.account, {"contact": self.contact})
            found = parse_json(reply).get("contact")
            self.info("Updated contact details:\n" + "\n".join(
                printable(c) for c in (found if isinstance(found, list) else [])))
        except AcmeError as error:
            self.info(str(error))

    def new_order(self, names):
        """(order, its URL) for names (list of str), section 7.4; registers where that is due."""
        payload = {"identifiers": [{"type": "dns", "value": name} for name in names]}
        what, remembered = "ordering for %s" % ", ".join(names), self.account is not None
        if not remembered:
            self.register()
        self.info("Creating new order...")
        try:
            reply = self.post(what, self.directory("newOrder"), payload)
        except AcmeError as error:
            # Servers word an unknown account in many ways; to register again does no harm.
            if not remembered or error.status not in (400, 401, 403, 404, 500) or error.type not in (
                    "", "accountDoesNotExist", "malformed", "unauthorized", "serverInternal"):
                raise
            self.register()
            reply = self.post(what, self.directory("newOrder"), payload)
        self.info("Order created!")
        return order_of(reply), header(reply, "Location", "the new order")

    def obtain(self, names, csr, spki, solver):
        """The checked chain (PEM str) for names (list of str) and a CSR (DER bytes) whose public
        key is spki (DER bytes), by the challenges that solver puts in place and removes."""
        order, url = self.new_order(names)
        try:
            todo = self.authorize(names, order, solver) if order["status"] == "pending" else []
            order = self.poll(url, order, ("pending",), todo)
            for name, _ in todo:
                self.info("%s verified!" % name)
        finally:
            solver.remove()
        self.info("Signing certificate...")
        if order["status"] == "ready":
            order = order_of(self.post("finalizing the order", field(
                order, "finalize", str, "the order"), {"csr": b64(csr)}))
            order = self.poll(url, order, ("pending", "ready", "processing"), [])
        elif order["status"] == "processing":
            order = self.poll(url, order, ("processing",), [])
        if order["status"] != "valid":
            raise AcmeError("the order for %s failed: it is %s: %s" % (", ".join(names), printable(
                order["status"]), problem_text(order.get("error") or "no reason given")))
        reply = self.post("downloading the certificate",
                          field(order, "certificate", str, "the order"))
        text = check_chain(reply.body.decode("ascii", "replace"), spki, names, time.time())
        self.info("Certificate signed!")
        return text

    def authorize(self, names, order, solver):
        """Have solver put every challenge in place, then answer all (sections 7.5, 8).

        Returns [(name, authorization URL)] of what the CA now validates.
        """
        urls = field(order, "authorizations", list, "the order")
        if len(urls) > len(names):
            raise AcmeError("the CA wants %d authorizations for %d names" % (len(urls), len(names)))
        todo, tasks = [], []
        for url in urls:
            reply = self.post("asking for an authorization", url)
            authorization = parse_json(reply)
            name = field(field(authorization, "identifier", dict, "an authorization"),
                         "value", str, "an authorization").lower()
            name = "*." + name if authorization.get("wildcard") is True else name
            if name not in names or name in [n for n, _ in todo]:
                raise AcmeError("the CA wants an authorization for %s, which was not asked for"
                                % printable(name))
            status = field(authorization, "status", str, "an authorization")
            if status == "valid":
                self.info("Already verified: %s, skipping..." % name)
                continue
            challenges = field(authorization, "challenges", list, "an authorization")
            found = [c for c in challenges if isinstance(c, dict) and c.get("type") == solver.kind]
            if status != "pending" or not found:
                raise AcmeError("%s cannot be verified: its authorization is %s, with %s" % (
                    name, printable(status), "no %s challenge" % solver.kind if not found
                    else problem_text(found[0].get("error") or "no reason given")))
            token = field(found[0], "token", str, "a challenge")
            if not re.match(r"[A-Za-z0-9_-]{1,200}\Z", token):
                raise AcmeError("the CA's token for %s is not base64url: %s" % (
                    name, printable(token)))
            todo.append((name, url))
            tasks.append((name, token, "%s.%s" % (token, self.key.thumbprint),
                          field(found[0], "url", str, "a challenge")))
        if tasks:
            solver.present([task[:3] for task in tasks])
        for name, _, _, url in tasks:
            self.info("Verifying %s..." % name)
            self.post("asking the CA to verify %s" % name, url, {})
        return todo

    def poll(self, url, order, busy, todo):
        """The order once its status is not in busy (section 7.4); asks for it as Retry-After
        says, else at once, after 50 ms, 100 ms ... 5 s, for POLL_SECONDS at most.

        Some CAs leave the order pending when a validation failed, so authorizations are looked at
        (todo: [(name, URL)]) when it takes long.
        """
        deadline, pause, hint = time.monotonic() + POLL_SECONDS, 0, None
        left = list(todo)
        while order["status"] in busy:
            wait = pause if hint is None else max(0.5, hint)
            if deadline - time.monotonic() < 0.5:
                self.look(left, True)
                raise AcmeError("the order is still %s after %d seconds; try again later" % (
                    order["status"], POLL_SECONDS))
            time.sleep(min(wait, deadline - time.monotonic()))
            reply = self.post("asking for the order", url)
            order, hint = order_of(reply), retry_after(reply.headers)
            if pause > 0.5 and order["status"] in busy:
                self.look(left, False)
            pause = min(5, pause * 2 or 0.05)
        if order["status"] == "invalid":
            self.look(left, True)
        return order

    def look(self, left, everything):
        """Raise AcmeError if one of the authorizations in left ([(name, URL)]) failed; drop the
        valid ones. Unless everything is asked for, stop at the first that is still pending."""
        failed = []
        for name, url in list(left):
            authorization = parse_json(self.post("asking for the authorization of %s" % name, url))
            status = authorization.get("status")
            challenges = authorization.get("challenges")
            errors = [c["error"] for c in (challenges if isinstance(challenges, list) else [])
                      if isinstance(c, dict) and c.get("error")]
            if status == "valid":
                left.remove((name, url))
            elif status != "pending" or errors:
                failed.append("Challenge did not pass for %s: %s" % (name, "; ".join(
                    map(problem_text, errors)) or "its authorization is %s" % printable(status)))
            elif not everything:
                break
        if failed:
            raise AcmeError("; ".join(failed))


def parse_json(reply):
    """The JSON object (dict) in a Reply. Raises AcmeError."""
    import json
    try:
        value = json.loads(reply.body.decode("utf-8"))
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise AcmeError("the CA's answer is not a JSON object: %s" % printable(
            reply.body[:200].decode("utf-8", "replace")))
    return value


def field(value, name, kind, where):
    """value[name] if it is of the kind (a type). Raises AcmeError."""
    if not isinstance(value.get(name), kind):
        raise AcmeError("the CA's answer has no usable '%s' in %s" % (name, where))
    return value[name]


def header(reply, name, what):
    """A header (str) of a Reply. Raises AcmeError if it is missing."""
    if not reply.headers.get(name):
        raise AcmeError("the CA's answer has no %s for %s" % (name, what))
    return reply.headers[name]


def order_of(reply):
    """The order object (dict, with a str 'status') in a Reply. Raises AcmeError."""
    order = parse_json(reply)
    field(order, "status", str, "the order")
    return order


# ---- http-01 ------------------------------------------------------------------------------------


class HttpFiles:
    """Solves http-01 (RFC 8555 section 8.3) by files in a folder that a web server serves.

    check(text): told what is wrong when a file cannot be fetched as the CA will, before the CA
    is told (None: not tried); port: for that (int or str); note(paths): called with the files
    before they are made; trouble(text): told of files that stay behind.
    """
    kind = "http-01"

    def __init__(self, folder, check=None, port=None, note=None, trouble=None):
        self.folder, self.check, self.port, self.paths = folder, check, port, []
        self.note, self.trouble = note or (lambda paths: None), trouble or (lambda text: None)

    def present(self, tasks):
        """Write the files for tasks: [(name, token, key authorization)]. Raises ToolError."""
        paths = [os.path.join(self.folder, token) for _, token, _ in tasks]
        self.note(paths)
        self.paths = paths
        for path, (_, _, text) in zip(paths, tasks):
            try:
                if os.path.lexists(path):
                    os.unlink(path)
                # O_EXCL: the web server's user may be able to plant a link here
                fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)
                with open(fd, "wb") as file:
                    os.fchmod(fd, 0o644)
                    file.write(text.encode())
            except OSError as error:
                raise ToolError("cannot write the challenge file %s: %s" % (path, error.strerror))
        if self.check:
            for path, problem in zip(paths, self_check(tasks, self.port)):
                if problem:
                    self.check("Wrote file to %s, but couldn't download %s" % (path, problem))

    def remove(self):
        """Remove the files; what cannot be removed is only told."""
        for path in self.paths:
            try:
                os.unlink(path)
            except FileNotFoundError:
                pass
            except OSError as error:
                self.trouble("cannot remove the challenge file %s: %s" % (path, error.strerror))
        self.paths = []


def self_check(tasks, port=None):
    """Fetch all tasks' files at once as a CA does: http, redirects followed without a look at
    TLS certificates, no proxy. Returns for each None or "URL (addresses): what is wrong"."""
    import http.client, socket, ssl, threading
    import urllib.request as request
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    opener = request.OpenerDirector()
    for handler in (request.HTTPHandler(), request.HTTPSHandler(context=context),
                    request.HTTPRedirectHandler(), request.HTTPErrorProcessor(),
                    request.HTTPDefaultErrorHandler()):
        opener.add_handler(handler)
    results = ["no answer within %d seconds" % SELF_CHECK_SECONDS] * len(tasks)

    def fetch(index, name, token, text):
        url = "http://%s%s/.well-known/acme-challenge/%s" % (
            name, ":%s" % port if port else "", token)
        address = "no address"
        results[index] = "%s: %s" % (url, results[index])
        try:
            found = socket.getaddrinfo(name, None, proto=socket.IPPROTO_TCP)
            address = " ".join(dict.fromkeys(item[4][0] for item in found))
            results[index] = "%s (%s): no answer in time" % (url, address)
            with opener.open(url, timeout=SELF_CHECK_SECONDS) as answer:
                body = answer.read(1000)
            results[index] = None if body.decode("utf-8", "replace").strip() == text else (
                "%s (%s): it is another text" % (url, address))
        except (OSError, http.client.HTTPException, ValueError) as error:
            results[index] = "%s (%s): %s" % (url, address, printable(error))

    threads = [threading.Thread(target=fetch, args=(i,) + task, daemon=True)
               for i, task in enumerate(tasks)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + SELF_CHECK_SECONDS
    for thread in threads:
        thread.join(max(0, deadline - time.monotonic()))
    return list(results)


# ---- As acme-tiny 5.0.3 -------------------------------------------------------------------------


def get_crt(account_key, csr, acme_dir, log=None, CA=DEFAULT_CA, disable_check=False,
            directory_url=DEFAULT_DIRECTORY_URL, contact=None, check_port=None):
    """The signed chain (PEM str) for a CSR, as acme-tiny 5.0.3 does it.

    account_key, csr: paths of PEM files; acme_dir: the challenge folder; log: a logging.Logger;
    CA: deprecated; disable_check: do not fetch the challenge files first; contact: list of URLs;
    check_port: for that fetch. Raises ValueError with the CA's words, IOError with openssl's.
    """
    log = log or __getattr__("LOGGER")

    def give_up(text):
        raise AcmeError(text)

    log.info("Parsing account key...")
    key = AccountKey(account_key)
    log.info("Parsing CSR...")
    try:
        request = openssl("req", "-in", csr, "-outform", "DER")
    except ToolError as error:
        raise ToolError("Error loading %s: %s" % (csr, error))
    names, spki = parse_csr(request)
    log.info("Found domains: %s" % ", ".join(names))
    url = CA + "/directory" if CA != DEFAULT_CA else directory_url
    client = Client(url, key, contact=contact, log=log)
    solver = HttpFiles(acme_dir, None if disable_check else give_up, check_port, trouble=log.info)
    return client.obtain(names, request, spki, solver)


def main(argv=None):
    """The command line of acme-tiny 5.0.3: the chain on stdout, the log on stderr.

    argv: list of str. Raises what get_crt() raises.
    """
    import argparse, logging
    parser = argparse.ArgumentParser(description="Get a certificate from an ACME CA by http-01. "
                                     "Read this file before you trust it with your account key.")
    add = parser.add_argument
    add("--account-key", required=True, help="PEM file with the private key of your account")
    add("--csr", required=True, help="PEM file with your certificate signing request")
    add("--acme-dir", required=True, help="folder served as /.well-known/acme-challenge/")
    add("--quiet", action="store_true", help="say nothing but errors")
    add("--disable-check", action="store_true",
        help="do not fetch the challenge file before the CA is told")
    add("--directory-url", default=DEFAULT_DIRECTORY_URL, help="default: Let's Encrypt")
    add("--ca", default=DEFAULT_CA, help="deprecated, use --directory-url")
    add("--contact", nargs="*", help="contact URLs of the account, as mailto:a@example.org")
    add("--check-port", metavar="PORT", help="port for the check of challenge files, default 80")
    args = parser.parse_args(argv)
    log = __getattr__("LOGGER")
    if args.quiet:
        log.setLevel(logging.ERROR)
    sys.stdout.write(get_crt(args.account_key, args.csr, args.acme_dir, log, args.ca,
                             args.disable_check, args.directory_url, args.contact,
                             args.check_port))


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit("acme_tiny: %s" % error)
