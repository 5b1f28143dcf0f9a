#!/usr/bin/python3 -IS
"""A tiny ACME client (RFC 8555): certificates from Let's Encrypt and its like by http-01.

It needs Python's standard library and the openssl program. What it touches: it reads the account
key and the CSR, writes and removes files in the challenge folder, and talks https to the CA. It
is the protocol half of letsencrypt-tiny, and a script and module of its own, with the command
line and the get_crt() of acme-tiny 5.0.3:

  acme_tiny.py --account-key account.key --csr domain.csr --acme-dir /srv/acme-challenge > crt

API: get_crt(), main(), AcmeError, ToolError, LOGGER. All else may change.
"""
import base64, os, re, sys, time
from collections import namedtuple

__version__ = "1.0"
DEFAULT_CA = "https://acme-v02.api.letsencrypt.org"  # deprecated, as in acme-tiny
DEFAULT_DIRECTORY_URL = "https://acme-v02.api.letsencrypt.org/directory"

REQUEST_SECONDS = 30  # for a whole request, connection and answer
POLL_SECONDS = 90     # for each of: validation, issuance
CHECK_SECONDS = 10    # for all self-checks together, but one second for each
ANSWER_BYTES = 1000000
NONCES = 101          # tries of one request, each with a fresh nonce

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
    logger = globals().setdefault("LOGGER", logging.getLogger(__name__))
    if not logger.handlers:
        logger.addHandler(logging.StreamHandler())
        logger.setLevel(logging.INFO)
    return logger


def printable(text, limit=500):
    """text (any type) from outside as a str for a terminal: control characters, bidi controls and
    surrogates escaped, cut after `limit` characters."""
    text = str(text)
    cut = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text[:limit])[:limit]
    return cut if len(text) <= limit else cut + "..."


def utc(seconds):
    """Seconds since 1970 as 2026-11-23 06:32 UTC; also what no calendar holds."""
    try:
        return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))
    except (ValueError, OverflowError, OSError):
        return "%s seconds after 1970" % seconds


# ---- openssl, encodings, DER --------------------------------------------------------------------


def openssl(*args, stdin=b"", seconds=600):
    """Run openssl with args (str), give it stdin (bytes), return its stdout (bytes).

    Raises ToolError with its own words. Keys are named by path only; a key with a passphrase
    fails, as there is no terminal to ask at.
    """
    import subprocess
    try:
        done = subprocess.run(("openssl",) + args, input=stdin, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, start_new_session=True, timeout=seconds)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ToolError("cannot run openssl: %s" % error)
    if done.returncode:
        words = "; ".join(done.stderr.decode("utf-8", "replace").split("\n"))
        raise ToolError("openssl %s failed (status %d): %s" % (
            args[0], done.returncode, printable(words)))
    return done.stdout


def b64(data):
    """data (bytes) as base64url without padding (str), RFC 8555 section 6.1."""
    return base64.urlsafe_b64encode(data).decode("ascii").rstrip("=")


def der(data):
    """The DER items in data (bytes) as [(tag, body)]. Raises ValueError."""
    items, start = [], 0
    while start < len(data):
        tag, size = data[start:start + 2]
        start += 2
        if size >= 0x80:
            count = size - 0x80
            size, start = int.from_bytes(data[start:start + count], "big"), start + count
        items.append((tag, data[start:start + size]))
        start += size
    if start != len(data):
        raise ValueError("its DER is cut short")
    return items


def inside(data):
    """The DER items within the one item that data (bytes) is. Raises ValueError."""
    (_, body), = der(data)
    return der(body)


def tlv(tag, *parts):
    """One DER item (bytes) of the tag (int) and the joined parts (bytes)."""
    body = b"".join(parts)
    size = len(body).to_bytes(4, "big").lstrip(b"\0") or b"\0"
    return bytes([tag]) + (size if len(body) < 0x80 else bytes([0x80 + len(size)]) + size) + body


def pem(text):
    """The PEM blocks in text as [(label, DER bytes)], one at least. Raises ValueError."""
    blocks = re.findall(r"-----BEGIN ([A-Z0-9 ]+)-----([A-Za-z0-9+/=\s]+)-----END \1-----", text)
    if not blocks or len(blocks) != text.count("-----BEGIN"):
        raise ValueError("it is not PEM")
    return [(label, base64.b64decode("".join(body.split()), validate=True))
            for label, body in blocks]


# ---- Keys and certificates ----------------------------------------------------------------------

RSA, EC = bytes.fromhex("2a864886f70d010101"), bytes.fromhex("2a8648ce3d0201")
CURVES = {bytes.fromhex("2a8648ce3d030107"): "ec-p256", bytes.fromhex("2b81040022"): "ec-p384"}
COMMON_NAME, SUBJECT_ALT_NAME = bytes.fromhex("550403"), bytes.fromhex("551d11")
EXTENSION_REQUEST = bytes.fromhex("2a864886f70d01090e")

Certificate = namedtuple("Certificate", "names not_before not_after spki issuer subject")


def public_key(text):
    """The SubjectPublicKeyInfo (DER bytes) of a private key in PEM: PKCS#8, PKCS#1 or SEC 1.

    Raises ValueError; what is none of these is left to openssl (ToolError).
    """
    if "ENCRYPTED" in text:
        raise ValueError("it needs a passphrase")
    for label, data in pem(text):
        items = inside(data)
        if label == "PRIVATE KEY":
            oid, parameters = (der(items[1][1]) + [(5, b"")])[:2]
            label = {RSA: "RSA PRIVATE KEY", EC: "EC PRIVATE KEY"}.get(oid[1], label)
            items = inside(items[2][1]) if label != "PRIVATE KEY" else []
        if label == "RSA PRIVATE KEY":
            key = tlv(0x30, tlv(*items[1]), tlv(*items[2]))
            return tlv(0x30, tlv(0x30, tlv(6, RSA), tlv(5)), tlv(3, b"\0", key))
        if label == "EC PRIVATE KEY" and 0xa1 in dict(items):
            curve = dict(items).get(0xa0) or tlv(*parameters)
            return tlv(0x30, tlv(0x30, tlv(6, EC), curve), dict(items)[0xa1])
    return openssl("pkey", "-pubout", "-outform", "DER", stdin=text.encode())


def key_kind(spki):
    """(type, bits) of a SubjectPublicKeyInfo (DER bytes): ("rsa", 3072), ("ec-p256", 256), ...;
    ("another", 0) for what is not supported. Raises ValueError."""
    (_, algorithm), (_, key) = inside(spki)
    oids = [body for _, body in der(algorithm)]
    if oids[0] == RSA:
        return "rsa", int.from_bytes(inside(key[1:])[0][1], "big").bit_length()
    kind = CURVES.get(oids[-1], "another")
    return kind, int(kind[4:]) if kind != "another" else 0


def extension_names(extensions):
    """The names (list of str) in the subjectAltName, critical or not, of DER extensions (bytes);
    what is no DNS name begins with its tag in brackets. Raises ValueError."""
    values = [der(body)[-1][1] for _, body in der(extensions)
              if der(body)[0][1] == SUBJECT_ALT_NAME]
    return [name.decode("ascii", "backslashreplace").lower() if tag == 0x82
            else "[%d]%s" % (tag & 0x1f, name.hex())
            for value in values for tag, name in inside(value)]


def der_time(tag, body):
    """Seconds since 1970 (int) of a DER UTCTime or GeneralizedTime. Raises ValueError."""
    from datetime import datetime, timezone
    text = body.decode("ascii")
    if tag == 0x17:
        text = ("19" if text >= "50" else "20") + text
    if not re.match(r"[0-9]{14}Z\Z", text):
        raise ValueError("its dates are not as RFC 5280 says")
    parts = [int(text[:4])] + [int(text[i:i + 2]) for i in range(4, 14, 2)]
    return int(datetime(*parts, tzinfo=timezone.utc).timestamp())


def parse_certificate(data):
    """A Certificate from DER bytes (RFC 5280): names (list of str), not_before and not_after
    (seconds since 1970), spki, issuer and subject (DER bytes). Raises ValueError."""
    try:
        fields = der(inside(data)[0][1])
        fields = fields[1:] if fields[0][0] == 0xa0 else fields
        issuer, validity, subject, spki = fields[2:6]
        names = [name for tag, body in fields[6:] if tag == 0xa3
                 for name in extension_names(der(body)[0][1])]
        dates = [der_time(*item) for item in der(validity[1])]
        return Certificate(names, dates[0], dates[1], tlv(*spki), issuer[1], subject[1])
    except (IndexError, OverflowError) as error:
        raise ValueError("it is no X.509 certificate: %s" % error)


def parse_csr(data):
    """(names, spki) of a PKCS#10 request in DER (RFC 2986): the common name's and the
    subjectAltName's DNS names (list of str), DER bytes. Raises ValueError."""
    try:
        _, subject, spki, attributes = der(inside(data)[0][1])[:4]
        pairs = [inside(rdn) for _, rdn in der(subject[1])]
        names = [value.decode("utf-8", "replace") for (_, oid), (_, value) in pairs
                 if oid == COMMON_NAME]
        for _, attribute in der(attributes[1]):
            if der(attribute)[0][1] == EXTENSION_REQUEST:
                names += extension_names(der(der(attribute)[1][1])[0][1])
        return [n for n in dict.fromkeys(names) if not n.startswith("[")], tlv(*spki)
    except (IndexError, ValueError) as error:
        raise ValueError("this is no certificate request: %s" % error)


def check_chain(text, spki, names, now):
    """The chain in text (PEM), written anew from its blocks, if it is what was asked for: it will
    be installed as it is.

    spki: DER bytes of our public key; names: list of str; now: seconds since 1970.
    Raises AcmeError.
    """
    try:
        blocks = pem(text)
        chain = [parse_certificate(data) for _, data in blocks]
    except ValueError as error:
        raise AcmeError("the CA's answer is no chain of certificates: %s" % error)
    leaf = chain[0]
    if any(label != "CERTIFICATE" for label, _ in blocks):
        wrong = "came with something that is no certificate"
    elif leaf.spki != spki:
        wrong = "is for another key"
    elif set(leaf.names) != {name.lower() for name in names}:
        wrong = "is for other names (%s)" % printable(", ".join(leaf.names))
    elif leaf.not_before > now + 3600 or leaf.not_after <= now:
        wrong = "is not valid now, but from %s to %s: is the clock right?" % (
            utc(leaf.not_before), utc(leaf.not_after))
    elif any(one.issuer != above.subject for one, above in zip(chain, chain[1:])):
        wrong = "came with a chain in which one did not issue the one before"
    else:
        return "".join("-----BEGIN CERTIFICATE-----\n%s-----END CERTIFICATE-----\n" % re.sub(
            "(.{1,64})", r"\1\n", base64.b64encode(data).decode("ascii")) for _, data in blocks)
    raise AcmeError("the CA's certificate is not used: it %s" % wrong)


class AccountKey:
    """An ACME account key in a PEM file: RSA of 2048 bits or more, P-256 or P-384.

    jwk (dict, RFC 7517), thumbprint (str, RFC 7638), alg (str, RFC 7518). The private key stays
    in its file: openssl signs. Raises ToolError, AcmeError.
    """

    def __init__(self, path):
        import hashlib, json
        try:
            with open(path, encoding="ascii", errors="replace") as file:
                spki = public_key(file.read())
            kind, bits = key_kind(spki)
            body = inside(spki)[1][1][1:]
        except OSError:
            openssl("rsa", "-in", path, "-noout")  # its words are what acme-tiny's users know
            raise
        except (ValueError, IndexError) as error:
            raise AcmeError("%s is no account key that can be used: %s" % (path, error))
        self.path, self.size = path, 0
        if kind == "rsa" and bits >= 2048:
            n, e = [b64(number.lstrip(b"\0")) for _, number in inside(body)]
            self.alg, self.jwk = "RS256", {"e": e, "kty": "RSA", "n": n}
        elif kind in CURVES.values() and body[0] == 4:
            self.size = len(body) // 2
            self.alg, self.jwk = "ES" + kind[4:], {
                "crv": "P-" + kind[4:], "kty": "EC", "x": b64(body[1:1 + self.size]),
                "y": b64(body[1 + self.size:])}
        else:
            raise AcmeError("%s is no account key that CAs take: RSA of 2048 bits or more, "
                            "P-256 or P-384" % path)
        canonical = json.dumps(self.jwk, sort_keys=True, separators=(",", ":"))
        self.thumbprint = b64(hashlib.sha256(canonical.encode()).digest())

    def sign(self, data):
        """The signature (bytes) of data (bytes) for a JWS: ECDSA as r and s (RFC 7518, 3.4)."""
        made = openssl("dgst", "-sha" + self.alg[2:], "-sign", self.path, stdin=data)
        return b"".join(number.lstrip(b"\0").rjust(self.size, b"\0")
                        for _, number in inside(made)) if self.size else made


# ---- https --------------------------------------------------------------------------------------

Reply = namedtuple("Reply", "status headers body")


def https_opener(ca_bundle=None, proxy=None):
    """A urllib opener for https only, without redirects, that keeps its connections open.

    ca_bundle: path or None (the system's, or SSL_CERT_FILE); proxy: URL or None (https_proxy
    and no_proxy from the environment). Raises OSError for a bundle that cannot be read.
    """
    import http.client, ssl, urllib.request

    class Socket(ssl.SSLSocket):  # a read timeout alone lets a drip of bytes go on for ever
        def recv_into(self, *args):
            self.settimeout(max(0.001, handler.deadline - time.monotonic()))
            return super().recv_into(*args)

    class Handler(urllib.request.HTTPSHandler):
        connections = {}

        def https_open(self, req):
            self.deadline = time.monotonic() + REQUEST_SECONDS
            key = req.host, req._tunnel_host
            if key not in self.connections:
                self.connections[key] = http.client.HTTPSConnection(
                    req.host, timeout=REQUEST_SECONDS, context=context)
                if req._tunnel_host:
                    self.connections[key].set_tunnel(req._tunnel_host, headers={
                        k: v for k, v in req.headers.items() if k.startswith("Proxy-")})
            connection = self.connections[key]
            kept = connection.sock is not None
            try:
                return self.ask(connection, req)
            except (ConnectionError, ssl.SSLError, http.client.BadStatusLine):
                if not kept:
                    raise
                return self.ask(connection, req)  # the server had closed it meanwhile

        def ask(self, connection, req):
            headers = {k: v for k, v in dict(req.unredirected_hdrs, **req.headers).items()
                       if not k.startswith("Proxy-")}
            try:
                if connection.sock is not None:
                    connection.sock.settimeout(REQUEST_SECONDS)
                connection.request(req.get_method(), req.selector, req.data, headers)
                return connection.getresponse()
            except BaseException:
                connection.close()
                raise

    context = ssl.create_default_context(cafile=ca_bundle)
    context.sslsocket_class = Socket
    handler = Handler(context=context)
    opener = urllib.request.OpenerDirector()
    opener.addheaders = [("User-Agent", "letsencrypt-tiny/" + __version__),
                         ("Accept-Language", "en")]
    opener.add_handler(urllib.request.ProxyHandler({"https": proxy} if proxy else None))
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
    if re.match(r"[0-9]{1,12}\Z", value):
        return int(value)
    until, now = http_date(value), http_date(headers.get("Date")) or time.time()
    return None if until is None else max(0, int(until - now))


def parse_json(reply, **kinds):
    """The JSON object (dict) in a Reply whose members are of these kinds (name=type), at least.
    Raises AcmeError."""
    import json
    try:
        value = json.loads(reply.body.decode("utf-8"))
        wrong = [name for name in kinds if not isinstance(value[name], kinds[name])]
    except KeyError as error:
        wrong = error.args
    except (ValueError, TypeError, RecursionError):
        value = None
    if not isinstance(value, dict) or wrong:
        raise AcmeError("the CA's answer is no JSON object%s: %s" % (
            " with a usable '%s'" % wrong[0] if isinstance(value, dict) else "",
            printable(reply.body.decode("utf-8", "replace"), 200)))
    return value


def problem_text(problem):
    """A problem document (RFC 7807, RFC 8555 section 6.7; any JSON) as one line of text."""
    if not isinstance(problem, dict):
        return printable(problem)
    parts = [problem.get("type"), problem.get("detail")]
    subproblems = problem.get("subproblems")
    for sub in subproblems if isinstance(subproblems, list) else []:
        if isinstance(sub, dict):
            who = sub.get("identifier")
            parts += [who.get("value") if isinstance(who, dict) else who,
                      sub.get("type"), sub.get("detail")]
    parts.append(problem.get("instance"))
    return printable(": ".join(str(p) for p in parts if p), 2000) or "no reason given"


# ---- The protocol -------------------------------------------------------------------------------


class Client:
    """One account at one ACME server (RFC 8555).

    url: the directory's; key: AccountKey; account: its URL if it is known; contact: list of URLs;
    log: called with a text. Every method raises AcmeError for whatever the CA's answers cause.
    skew: seconds that the CA's clock is ahead of ours, None before the first answer.
    """

    def __init__(self, url, key=None, account=None, contact=None, ca_bundle=None, proxy=None,
                 log=lambda text: None):
        self.url, self.key, self.account, self.contact = url, key, account, contact
        self.opener, self.log = https_opener(ca_bundle, proxy), log
        self.nonce = self.skew = self.links = None

    def fetch(self, what, url, body=None, method=None):
        """The CA's Reply to one request. what: for errors; body: bytes of a JWS, or None."""
        import http.client
        from urllib.request import Request
        if not url.lower().startswith("https://"):
            raise AcmeError("%s: the CA names an address that is not https: %s" % (
                what, printable(url)))
        headers = {} if body is None else {"Content-Type": "application/jose+json"}
        try:
            response = self.opener.open(Request(url, body, headers, method=method))
            reply = Reply(response.status, response.headers, response.read(ANSWER_BYTES + 1))
            if len(reply.body) > ANSWER_BYTES or response.length:
                raise ValueError("the answer was cut short, or has over %d bytes" % ANSWER_BYTES)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise AcmeError("%s: no usable answer from %s: %s" % (
                what, printable(url), printable(error) or type(error).__name__))
        self.nonce = reply.headers.get("Replay-Nonce") or self.nonce
        date = http_date(reply.headers.get("Date"))
        self.skew = self.skew if date is None else date - time.time()
        if 200 <= reply.status < 300:
            return reply
        try:
            problem = parse_json(reply)
            name, text = str(problem.get("type")).rpartition(":")[2], problem_text(problem)
        except AcmeError:
            name, text = "", printable(reply.body.decode("utf-8", "replace").strip(), 200)
        raise AcmeError("%s: the CA refused (%d): %s (%s)" % (
            what, reply.status, text or "no reason given", printable(url)), reply.status, name,
            retry_after(reply.headers) if reply.status in (429, 503) else None)

    def directory(self, name):
        """The URL (str) of a resource in the directory (section 7.1.1), which is asked once."""
        if self.links is None:
            self.log("Getting directory...")
            self.links = parse_json(self.fetch("getting the directory", self.url), newNonce=str,
                                    newAccount=str, newOrder=str)
        return self.links[name]

    def post(self, what, url, payload=None):
        """The Reply to a signed request (section 6.2); without payload POST-as-GET (6.3)."""
        import json
        for left in reversed(range(NONCES)):
            if not self.nonce:
                self.fetch("getting a nonce", self.directory("newNonce"), method="HEAD")
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
                if error.type != "badNonce" or not left:
                    raise

    def register(self):
        """Make the account, or find it by its key (sections 7.3, 7.3.1); sets .account."""
        self.log("Registering account...")
        self.account, url = None, self.directory("newAccount")
        payload = {"termsOfServiceAgreed": True}
        contact = {"contact": self.contact} if self.contact else {}
        try:
            reply = self.post("registering", url, dict(payload, **contact))
        except AcmeError as error:
            if error.type not in ("invalidContact", "unsupportedContact"):
                raise
            self.log("The CA does not take the contact: %s" % error)
            reply, contact = self.post("registering", url, payload), {}
        self.account = location(reply)
        self.log("%s Account ID: %s" % ("Registered!" if reply.status == 201 else
                                        "Already registered!", printable(self.account)))
        if contact:
            try:
                if reply.status == 200:
                    reply = self.post("updating the contact", self.account, contact)
                now = parse_json(reply, contact=list)["contact"]
                self.log("Updated contact details:\n" + "\n".join(map(printable, now)))
            except AcmeError as error:
                self.log(str(error))  # it is optional: some CAs forget it, or refuse

    def new_order(self, names):
        """The Reply that holds an order for names (list of str), section 7.4."""
        payload = {"identifiers": [{"type": "dns", "value": name} for name in names]}
        what, known = "ordering for %s" % ", ".join(names), self.account is not None
        if not known:
            self.register()
        self.log("Creating new order...")
        try:
            return self.post(what, self.directory("newOrder"), payload)
        except AcmeError as error:
            # Servers word an unknown account in many ways; to register again does no harm.
            if not known or error.status not in (400, 401, 403, 404, 500) or error.type not in (
                    "", "None", "accountDoesNotExist", "malformed", "unauthorized",
                    "serverInternal"):
                raise
            self.register()
            return self.post(what, self.directory("newOrder"), payload)

    def obtain(self, names, csr, spki, solver):
        """The checked chain (PEM str) for names (list of str) and a CSR (DER bytes) whose public
        key is spki (DER bytes), by the challenges that solver puts in place and removes."""
        reply = self.new_order(names)
        order, url, todo = parse_json(reply, status=str), location(reply), []
        self.log("Order created!")
        try:
            if order["status"] == "pending":
                todo = self.authorize(names, parse_json(reply, authorizations=list), solver)
                order = self.poll(url, order, None, ("pending",), todo)
        finally:
            solver.remove()
        for name, _ in todo:
            self.log("%s verified!" % name)
        self.log("Signing certificate...")
        if order["status"] == "ready":
            reply = self.post("finalizing the order", str(order.get("finalize")),
                              {"csr": b64(csr)})
            order = parse_json(reply, status=str)
        order = self.poll(url, order, reply, ("pending", "ready", "processing"), [])
        if order["status"] != "valid":
            raise AcmeError("the order for %s failed: it is %s: %s" % (", ".join(names), printable(
                order["status"]), problem_text(order.get("error") or "no reason given")))
        reply = self.post("downloading the certificate", str(order.get("certificate")))
        text = check_chain(reply.body.decode("ascii", "replace"), spki, names, time.time())
        self.log("Certificate signed!")
        return text

    def authorize(self, names, order, solver):
        """Have solver put every challenge in place, then answer all (sections 7.5, 8).

        Returns [(name, authorization URL)] of what the CA now validates.
        """
        todo, tasks, left = [], [], {name.lower() for name in names}
        for url in order["authorizations"]:
            reply = self.post("asking for an authorization", str(url))
            found = parse_json(reply, identifier=dict, status=str, challenges=list)
            name = str(found["identifier"].get("value")).lower()
            name = "*." + name if found.get("wildcard") is True else name
            if name not in left:
                raise AcmeError("the CA wants an authorization for %s, which was not asked for, "
                                "or twice" % printable(name))
            left.remove(name)
            if found["status"] == "valid":
                self.log("Already verified: %s, skipping..." % name)
                continue
            fits = [c for c in found["challenges"] if isinstance(c, dict)
                    and c.get("type") == solver.kind and isinstance(c.get("url"), str)]
            token = str(fits[0].get("token")) if fits else ""
            if found["status"] != "pending" or not re.match(r"[A-Za-z0-9_-]{1,200}\Z", token):
                raise AcmeError("%s cannot be verified: its authorization is %s, and its %s "
                                "challenge %s" % (name, printable(found["status"]), solver.kind,
                                                  printable(fits[0]) if fits else "is missing"))
            todo.append((name, url))
            tasks.append((name, token, "%s.%s" % (token, self.key.thumbprint), fits[0]["url"]))
        solver.present([task[:3] for task in tasks])
        for name, _, _, url in tasks:
            self.log("Verifying %s..." % name)
            self.post("asking the CA to verify %s" % name, url, {})
        return todo

    def poll(self, url, order, reply, busy, todo):
        """The order (dict) once its status is not in busy (section 7.4), asked for when
        Retry-After says, else at once, after 50 ms, 100 ms ... 5 s, for POLL_SECONDS at most.

        Some CAs leave the order pending when a validation failed, so authorizations are looked at
        (todo: [(name, URL)]) when it takes long.
        """
        deadline, pause, left = time.monotonic() + POLL_SECONDS, 0, list(todo)
        while order["status"] in busy:
            if time.monotonic() > deadline - 0.1:
                self.look(left, True)
                raise AcmeError("the order is still %s after %d seconds: try again later" % (
                    order["status"], POLL_SECONDS))
            hint = retry_after(reply.headers) if reply else None
            wait = pause if hint is None else max(0.5, hint)
            time.sleep(max(0, min(wait, deadline - time.monotonic())))
            reply = self.post("asking for the order", url)
            order = parse_json(reply, status=str)
            if pause > 0.5 and order["status"] in busy:
                self.look(left, False)
            pause = min(5, pause * 2 or 0.05)
        if order["status"] == "invalid":
            self.look(left, True)
        return order

    def look(self, left, everything):
        """Raise AcmeError if an authorization in left ([(name, URL)]) failed; drop the valid
        ones. Unless everything is asked for, stop at the first that is still pending."""
        failed = []
        for name, url in list(left):
            found = parse_json(self.post("asking for the authorization of %s" % name, url),
                               status=str, challenges=list)
            errors = [problem_text(c["error"]) for c in found["challenges"]
                      if isinstance(c, dict) and c.get("error")]
            if found["status"] == "valid":
                left.remove((name, url))
            elif found["status"] != "pending" or errors:
                failed.append("Challenge did not pass for %s: %s" % (name, "; ".join(errors) or (
                    "its authorization is %s" % printable(found["status"]))))
            elif not everything:
                break
        if failed:
            raise AcmeError("; ".join(failed))


def location(reply):
    """The Location header (str) of a Reply. Raises AcmeError."""
    if not reply.headers.get("Location"):
        raise AcmeError("the CA's answer has no Location: %s" % printable(reply.headers))
    return reply.headers["Location"]


# ---- http-01 ------------------------------------------------------------------------------------


class HttpFiles:
    """Solves http-01 (RFC 8555 section 8.3) by files in a folder that a web server serves.

    check(text): told what is wrong when a file cannot be fetched as the CA will, before the CA
    is told (None: not tried); port: for that (int or str); note(paths): called with the files
    before they are made; trouble(text): told of files that stay behind.
    """
    kind = "http-01"

    def __init__(self, folder, check=None, port=None, note=lambda paths: None,
                 trouble=lambda text: None):
        self.folder, self.check, self.port, self.paths = folder, check, port, []
        self.note, self.trouble = note, trouble

    def present(self, tasks):
        """Write the files for tasks: [(name, token, key authorization)]. Raises ToolError."""
        paths = [os.path.join(self.folder, token) for _, token, _ in tasks]
        self.note(paths)
        self.paths = paths
        try:
            for path, (_, _, text) in zip(paths, tasks):
                if os.path.lexists(path):
                    os.unlink(path)
                # O_EXCL: the web server's user may be able to plant a link here
                fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)
                with open(fd, "wb") as file:
                    os.fchmod(fd, 0o644)
                    file.write(text.encode())
        except OSError as error:
            raise ToolError("cannot write the challenge file %s: %s" % (path, error.strerror))
        end = time.monotonic() + CHECK_SECONDS
        for path, (name, token, text) in zip(paths, tasks if self.check else []):
            url = "http://%s%s/.well-known/acme-challenge/%s" % (
                name, ":%s" % self.port if self.port else "", token)
            wrong = self_check(url, text, max(1, end - time.monotonic()))
            if wrong:
                self.check("Wrote file to %s, but couldn't download %s: %s" % (path, url, wrong))

    def remove(self):
        """Remove the files; what cannot be removed is only told."""
        for path in list(self.paths):
            try:
                os.unlink(path)
            except OSError as error:
                if not isinstance(error, FileNotFoundError):
                    self.trouble("cannot remove %s: %s" % (path, error.strerror))
                    continue
            self.paths.remove(path)


def self_check(url, text, seconds):
    """Fetch what must be text (str) from an http URL as a CA does: redirects followed without a
    look at TLS certificates, no proxy. Returns "" or what is wrong (str) after so many seconds."""
    import http.client, socket, ssl, urllib.request
    context, address = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), "no address"
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    opener = urllib.request.OpenerDirector()
    opener.addheaders = [("User-Agent", "letsencrypt-tiny/" + __version__)]
    for handler in ("HTTPHandler", "HTTPRedirectHandler", "HTTPErrorProcessor",
                    "HTTPDefaultErrorHandler"):
        opener.add_handler(getattr(urllib.request, handler)())
    opener.add_handler(urllib.request.HTTPSHandler(context=context))
    try:
        host = urllib.request.Request(url).host.partition(":")[0]
        found = socket.getaddrinfo(host, None, proto=socket.IPPROTO_TCP)
        address = " ".join(dict.fromkeys(info[4][0] for info in found))
        with opener.open(url, timeout=seconds) as answer:
            body = answer.read(1000).decode("utf-8", "replace").strip()
        return "" if body == text else "%s: it is another text" % address
    except (OSError, http.client.HTTPException, ValueError) as error:
        return "%s: %s" % (address, printable(error))


# ---- As acme-tiny 5.0.3 -------------------------------------------------------------------------


def get_crt(account_key, csr, acme_dir, log=None, CA=DEFAULT_CA, disable_check=False,
            directory_url=DEFAULT_DIRECTORY_URL, contact=None, check_port=None):
    """The signed chain (PEM str) for a CSR, as acme-tiny 5.0.3 does it.

    account_key, csr: paths of PEM files; acme_dir: the challenge folder; log: a logging.Logger;
    CA: deprecated; disable_check: do not fetch the challenge files first; contact: list of URLs;
    check_port: for that fetch. Raises ValueError with the CA's words, IOError with openssl's.
    """
    log = log or __getattr__("LOGGER")

    def refuse(text):
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
    client = Client(CA + "/directory" if CA != DEFAULT_CA else directory_url, key,
                    contact=contact, log=log.info)
    return client.obtain(names, request, spki, HttpFiles(
        acme_dir, None if disable_check else refuse, check_port, trouble=log.info))


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
    add("--ca", dest="CA", default=DEFAULT_CA, help="deprecated, use --directory-url")
    add("--contact", nargs="*", help="contact URLs of the account, as mailto:a@example.org")
    add("--check-port", metavar="PORT", help="port for the check of challenge files, default 80")
    args = vars(parser.parse_args(argv))
    if args.pop("quiet"):
        __getattr__("LOGGER").setLevel(logging.ERROR)
    sys.stdout.write(get_crt(**args))


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit("acme_tiny: %s" % error)
