#!/usr/bin/env python3
"""A small ACME server (RFC 8555) for tests and demonstrations: strict, local, and rude on demand.

It checks what a real CA checks (nonces, signatures, URLs, account and certificate keys, CSRs, the
http-01 challenge by a real request), issues real certificates, and misbehaves where it is told to.
Everything happens on 127.0.0.1; nothing but Python and the openssl program is needed.

    with FakeCA(validity=6 * 86400) as ca:          # in a test
        ca.http_port = web.port                     # where challenges are looked for
        ca.fault('order', 'status', status=503, headers={'Retry-After': '120'})
        run_a_client(ca.directory_url, ca.bundle)

    python3 tests/fake_ca.py --http-port 8080       # by hand, until ^C

All times are seconds; points in time are seconds since 1970.
"""
import argparse
import atexit
import base64
import contextlib
import email.utils
import hashlib
import http.client
import http.server
import itertools
import json
import os
import random
import re
import secrets
import shutil
import signal
import socket
import socketserver
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from types import SimpleNamespace

URN = 'urn:ietf:params:acme:error:'
JSON, PROBLEM = 'application/json', 'application/problem+json'
# The names under which requests are logged and faults are ordered, by URL path and, for things
# that have a URL each, by its first part.
FIXED = {'/directory': 'directory', '/new-nonce': 'nonce', '/new-account': 'account',
         '/new-order': 'order', '/revoke': 'revoke'}
OBJECTS = {'account': 'account-update', 'order': 'order-poll', 'authz': 'authz',
           'challenge': 'challenge', 'finalize': 'finalize', 'certificate': 'certificate'}
KINDS = {'*', *FIXED.values(), *OBJECTS.values()}


# ---- openssl ------------------------------------------------------------------------------------

def openssl(*args, data=b''):
    """Run openssl with `data` (bytes) on stdin and return its stdout (bytes)."""
    done = subprocess.run(('openssl',) + args, input=data, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE)
    if done.returncode:
        raise RuntimeError('openssl %s: %s' % (args[0], done.stderr.decode(errors='replace')))
    return done.stdout


def make_key(path, kind):
    """Write a new private key of `kind` 'ec' or 'rsa' to `path` (PEM)."""
    options = {'ec': ('EC', '-pkeyopt', 'ec_paramgen_curve:P-256'),
               'rsa': ('RSA', '-pkeyopt', 'rsa_keygen_bits:2048')}[kind]
    openssl('genpkey', '-algorithm', *options, '-out', path)


def signature_fits(spki, digest, signature, data):
    """Whether `signature` over `data` was made by the key of `spki` (all bytes, DER inside)."""
    with tempfile.TemporaryDirectory() as folder:
        key, sig = os.path.join(folder, 'key'), os.path.join(folder, 'signature')
        with open(key, 'w') as file:
            file.write(pem('PUBLIC KEY', spki))
        with open(sig, 'wb') as file:
            file.write(signature)
        try:
            openssl('dgst', '-' + digest, '-verify', key, '-signature', sig, data=data)
        except RuntimeError:
            return False
    return True


# ---- encodings ----------------------------------------------------------------------------------

def b64(data):
    """bytes -> base64url without padding (str)."""
    return base64.urlsafe_b64encode(data).decode().rstrip('=')


def unb64(text):
    """base64url without padding (str) -> bytes; anything else is the client's mistake."""
    if not isinstance(text, str) or not re.match(r'[A-Za-z0-9_-]*\Z', text) or len(text) % 4 == 1:
        raise Problem(400, 'malformed', 'not base64url without padding')
    return base64.urlsafe_b64decode(text + '=' * (-len(text) % 4))


def pem(label, der):
    """One PEM block (str) around `der` (bytes)."""
    text = base64.b64encode(der).decode()
    lines = '\n'.join(text[i:i + 64] for i in range(0, len(text), 64))
    return '-----BEGIN %s-----\n%s\n-----END %s-----\n' % (label, lines, label)


def tlv(tag, *parts):
    """One DER item: `tag` (int) around the concatenated `parts` (bytes)."""
    body = b''.join(parts)
    size = len(body)
    if size < 128:
        return bytes((tag, size)) + body
    length = size.to_bytes((size.bit_length() + 7) // 8, 'big')
    return bytes((tag, 128 | len(length))) + length + body


def items(der):
    """List of the DER items in `der`: (tag, body, the whole item); ValueError if cut short."""
    found = []
    while der:
        tag, size, start = der[0], der[1], 2
        if size & 128:
            start += size & 127
            size = int.from_bytes(der[2:start], 'big')
        if len(der) < start + size:
            raise ValueError('DER cut short')
        found.append((tag, der[start:start + size], der[:start + size]))
        der = der[start + size:]
    return found


def integer(number):
    """A non-negative number as DER INTEGER."""
    return tlv(2, number.to_bytes(number.bit_length() // 8 + 1, 'big'))


def oid(dotted):
    """'1.2.840...' as DER OBJECT IDENTIFIER."""
    first, second, *rest = map(int, dotted.split('.'))
    body = bytes((40 * first + second,))
    for number in rest:
        digits = bytes((number & 127,))
        while number > 127:
            number >>= 7
            digits = bytes((128 | number & 127,)) + digits
        body += digits
    return tlv(6, body)


def der_time(seconds):
    """A point in time as DER; RFC 5280 wants two-digit years up to 2049 and four digits after."""
    when = time.gmtime(seconds)
    if when.tm_year < 2050:
        return tlv(0x17, time.strftime('%y%m%d%H%M%SZ', when).encode())
    return tlv(0x18, time.strftime('%Y%m%d%H%M%SZ', when).encode())


def der_name(common_name):
    """A distinguished name with a common name, or with nothing in it if that is ''."""
    cn = tlv(0x30, oid('2.5.4.3'), tlv(0x0c, common_name.encode()))
    return tlv(0x30, tlv(0x31, cn) if common_name else b'')


def bits(data):
    """bytes as DER BIT STRING."""
    return tlv(3, b'\0', data)


EC_KEY, RSA_KEY = oid('1.2.840.10045.2.1'), oid('1.2.840.113549.1.1.1')
CURVES = {'P-256': (oid('1.2.840.10045.3.1.7'), 32), 'P-384': (oid('1.3.132.0.34'), 48)}
NULL = tlv(5)
RSA_SHA256 = tlv(0x30, oid('1.2.840.113549.1.1.11'), NULL)
ECDSA_SHA256 = tlv(0x30, oid('1.2.840.10045.4.3.2'))
CSR_DIGESTS = {RSA_SHA256: 'sha256', ECDSA_SHA256: 'sha256',
               tlv(0x30, oid('1.2.840.113549.1.1.12'), NULL): 'sha384',
               tlv(0x30, oid('1.2.840.10045.4.3.3')): 'sha384'}
SAN, EXTENSION_REQUEST = oid('2.5.29.17'), oid('1.2.840.113549.1.9.14')
COMMON_NAME = oid('2.5.4.3')


def jwk_spki(jwk):
    """The SubjectPublicKeyInfo (DER bytes) of a JSON Web Key (dict)."""
    if jwk.get('kty') == 'RSA':
        modulus, exponent = (int.from_bytes(unb64(jwk.get(m)), 'big') for m in 'ne')
        if not 2048 <= modulus.bit_length() <= 4096:
            raise Problem(400, 'badPublicKey', 'RSA keys have 2048 to 4096 bits here')
        key = tlv(0x30, integer(modulus), integer(exponent))
        return tlv(0x30, tlv(0x30, RSA_KEY, NULL), bits(key))
    if jwk.get('kty') == 'EC' and jwk.get('crv') in CURVES:
        curve, size = CURVES[jwk['crv']]
        point = [unb64(jwk.get(m)) for m in 'xy']
        if [len(number) for number in point] != [size, size]:
            raise Problem(400, 'badPublicKey', 'coordinates of a wrong length')
        return tlv(0x30, tlv(0x30, EC_KEY, curve), bits(b'\4' + b''.join(point)))
    raise Problem(400, 'badPublicKey', 'unknown kind of key')


def jwk_thumbprint(jwk):
    """RFC 7638: digest (base64url str) of the members that make the key."""
    members = {'RSA': ('e', 'kty', 'n'), 'EC': ('crv', 'kty', 'x', 'y')}[jwk['kty']]
    text = json.dumps({m: jwk[m] for m in members}, sort_keys=True, separators=(',', ':'))
    return b64(hashlib.sha256(text.encode()).digest())


def jws_signature_fits(alg, jwk, signature, data):
    """Whether `signature` (bytes, as in a JWS) over `data` (bytes) belongs to the key `jwk`."""
    if alg == 'RS256' and jwk['kty'] == 'RSA':
        return signature_fits(jwk_spki(jwk), 'sha256', signature, data)
    if (alg, jwk.get('crv')) not in (('ES256', 'P-256'), ('ES384', 'P-384')):
        raise Problem(400, 'badSignatureAlgorithm', 'algorithm does not fit the key',
                      algorithms=['RS256', 'ES256', 'ES384'])
    size = CURVES[jwk['crv']][1]
    if len(signature) != 2 * size:
        return False
    # JWS has the two numbers side by side, openssl wants them in DER.
    pair = (int.from_bytes(half, 'big') for half in (signature[:size], signature[size:]))
    return signature_fits(jwk_spki(jwk), 'sha' + alg[2:], tlv(0x30, *map(integer, pair)), data)


def beside(der, wanted):
    """The other items of each sequence in `der`, at any depth, that begins with the OID
    `wanted`."""
    for tag, body, _ in items(der):
        if tag & 0x20:
            first, *rest = items(body) or [(0, b'', b'')]
            if first[2] == wanted:
                yield rest
            else:
                yield from beside(body, wanted)


def read_csr(der):
    """Check a PKCS#10 request (DER bytes); return its public key (SPKI DER) and set of names."""
    try:
        (_, content, _), = items(der)
        (_, body, info), (_, _, algorithm), (_, signature, _) = items(content)
        _, (_, _, subject), (_, _, spki), *attributes = items(body)
        names = {rest[0][1].decode().lower() for rest in beside(subject, COMMON_NAME)}
        for rest in beside(b''.join(item[2] for item in attributes), SAN):
            (_, general_names, _), = items(rest[-1][1])
            for tag, name, _ in items(general_names):
                names.add(name.decode() if tag == 0x82 else 'a name of type %02x' % tag)
    except (ValueError, IndexError):
        raise Problem(400, 'badCSR', 'cannot be parsed')
    digest = CSR_DIGESTS.get(algorithm)
    if not digest or not signature_fits(spki, digest, signature[1:], info):
        raise Problem(400, 'badCSR', 'the signature is wrong')
    return spki, names


# ---- the authority's own keys and certificates --------------------------------------------------

class PKI:
    """A root, `chain_length` (int) intermediates and a TLS server certificate, made in `folder`."""
    shared = {}     # (ca_key, chain_length) -> PKI: making keys is the slow part of a start

    def __init__(self, folder, ca_key, chain_length):
        self.folder = folder
        os.makedirs(folder, exist_ok=True)
        span = time.time() - 10 * 365 * 86400, time.time() + 20 * 365 * 86400
        spki = self.new_key('root', ca_key)
        self.issuer = 'root', 'Fake Root', spki     # who signs: name of key file, CN, SPKI
        self.root = self.certificate('Fake Root', spki, span, ca=True)
        with open(self.path('root.pem'), 'w') as file:
            file.write(pem('CERTIFICATE', self.root))
        tls = self.certificate('localhost', self.new_key('tls', 'ec'), span,
                               [tlv(0x82, b'localhost'), tlv(0x87, b'\x7f\0\0\1')])
        with open(self.path('tls.pem'), 'w') as file:
            file.write(pem('CERTIFICATE', tls))
        self.intermediates = []                     # DER, the one that signs leaves first
        for number in range(1, chain_length + 1):
            key, name = 'intermediate%d' % number, 'Fake Intermediate %d' % number
            spki = self.new_key(key, ca_key)
            self.intermediates.insert(0, self.certificate(name, spki, span, ca=True))
            self.issuer = key, name, spki

    @classmethod
    def get(cls, ca_key, chain_length):
        """The PKI of that kind which all CAs of this process share."""
        if (ca_key, chain_length) not in cls.shared:
            folder = tempfile.mkdtemp(prefix='fake-ca-')
            atexit.register(shutil.rmtree, folder, ignore_errors=True)
            cls.shared[ca_key, chain_length] = cls(folder, ca_key, chain_length)
        return cls.shared[ca_key, chain_length]

    def path(self, name):
        return os.path.join(self.folder, name)

    def new_key(self, name, kind):
        """Make the private key NAME.key; return its public key (SPKI DER)."""
        make_key(self.path(name + '.key'), kind)
        return openssl('pkey', '-in', self.path(name + '.key'), '-pubout', '-outform', 'DER')

    def certificate(self, common_name, spki, span, san=(), ca=False):
        """A certificate (DER) for the key `spki` from the present issuer.

        `span`: (not before, not after); `san`: DER general names. Written here rather than by
        `openssl x509`, which cannot set dates to the second in all its versions.
        """
        signer, issuer_name, issuer_spki = self.issuer
        algorithm = RSA_SHA256 if RSA_KEY in issuer_spki else ECDSA_SHA256
        extensions = [
            ('2.5.29.14', False, tlv(4, key_id(spki))),
            ('2.5.29.35', False, tlv(0x30, tlv(0x80, key_id(issuer_spki)))),
            # keyCertSign and cRLSign, or digitalSignature
            ('2.5.29.15', True, tlv(3, b'\1\6' if ca else b'\7\x80')),
            ('2.5.29.19', True, tlv(0x30, tlv(1, b'\xff') if ca else b''))]
        if san:
            extensions += [('2.5.29.17', not common_name, tlv(0x30, *san)),
                           ('2.5.29.37', False, tlv(0x30, oid('1.3.6.1.5.5.7.3.1')))]
        tbs = tlv(0x30, tlv(0xa0, integer(2)), integer(secrets.randbits(120)), algorithm,
                  der_name(issuer_name), tlv(0x30, *map(der_time, span)), der_name(common_name),
                  spki, tlv(0xa3, tlv(0x30, *(
                      tlv(0x30, oid(name), tlv(1, b'\xff') if critical else b'', tlv(4, value))
                      for name, critical, value in extensions))))
        signature = openssl('dgst', '-sha256', '-sign', self.path(signer + '.key'), data=tbs)
        return tlv(0x30, tbs, algorithm, bits(signature))


def key_id(spki):
    """A key identifier (20 bytes) for the key `spki`."""
    return hashlib.sha256(spki).digest()[:20]


# ---- answers ------------------------------------------------------------------------------------

class Reply:
    """An answer before it is sent: status (int), body (bytes), headers (dict of str).

    `nonce`: whether it carries one; False for what a front end answers in the CA's place.
    """

    def __init__(self, status=200, body=b'', headers=None, kind=JSON, nonce=True):
        self.status, self.headers, self.nonce = status, {}, nonce
        self.body = json.dumps(body).encode() if isinstance(body, dict) else body
        if self.body:
            self.headers['Content-Type'] = kind
        self.headers.update(headers or {})


class Problem(Exception):
    """An RFC 8555 error: status (int), type (with or without the URN), detail, other members."""

    def __init__(self, status, type, detail=None, headers=None, **members):
        super().__init__(type, detail)
        body = dict(members, type=type if ':' in type else URN + type, status=status)
        if detail is not None:
            body['detail'] = detail
        self.reply = Reply(status, body, headers, PROBLEM)


def refuse(what, args, last):
    """The answer of a fault that comes *instead of* doing what was asked; None if it is no such."""
    if what == 'status':
        return Reply(args['status'], args.get('body', b''), args.get('headers'), 'text/plain',
                     nonce=False)
    if what == 'problem':
        return Problem(**dict({'status': 400, 'type': 'malformed'}, **args)).reply
    if what == 'bad_nonce':
        return Problem(400, 'badNonce', 'ordered by the test').reply
    if what == 'redirect':
        return Reply(302, headers={'Location': args['location']}, nonce=False)
    if what == 'http_error_html':
        return Reply(args.get('status', 502), b'<html><h1>Bad Gateway</h1></html>\n',
                     kind='text/html', nonce=False)
    return last if what == 'repeat' else None


def alter(reply, what, args):
    """Apply to `reply` a fault that changes an answer after the work was done."""
    if what == 'body':
        reply.body = args['body']
    elif what == 'edit' and reply.body:
        data = json.loads(reply.body)
        result = args['edit'](data)
        reply.body = json.dumps(data if result is None else result).encode()
    elif what == 'edit_text':
        reply.body = args['edit'](reply.body.decode()).encode()
    elif what == 'headers':
        for name, value in args['headers'].items():
            reply.headers[name] = value
            if value is None:
                del reply.headers[name]


# Faults that concern the connection; Handler.send knows what they mean.
TRANSPORT = 'drop', 'cut', 'delay', 'dribble', 'endless', 'close'
REFUSALS = 'status', 'problem', 'bad_nonce', 'redirect', 'http_error_html', 'repeat'
ALTERATIONS = 'body', 'edit', 'edit_text', 'headers'


def hang_up(connection):
    """End a TLS connection that another thread may be reading from, as a crash would."""
    try:            # not by SSLSocket's own method, which pulls the TLS layer from under a read
        socket.socket.shutdown(connection, socket.SHUT_RDWR)
    except OSError:
        pass


class Handler(http.server.BaseHTTPRequestHandler):
    """One TLS connection of a client."""
    protocol_version = 'HTTP/1.1'
    disable_nagle_algorithm = True

    def setup(self):
        # The handshake takes place at the first read, in the connection's own thread: a client
        # that never finishes it holds up nobody.
        ca = self.server.ca
        self.request = ca.tls.wrap_socket(self.request, server_side=True,
                                          do_handshake_on_connect=False)
        self.server.sockets.add(self.request)
        if ca.stopped.is_set():
            hang_up(self.request)
        ca.connections += 1
        super().setup()

    def finish(self):
        super().finish()
        self.server.sockets.discard(self.request)
        self.request.close()

    def answer(self):
        size = self.headers.get('Content-Length', '0')
        body = self.rfile.read(int(size) if size.isdigit() else 0)
        self.send(*self.server.ca.respond(self.command, self.path, self.headers, body))

    do_GET = do_HEAD = do_POST = answer

    def send(self, reply, faults):
        """Send `reply`, harmed by the transport `faults` (dict: name -> arguments)."""
        pause = self.server.ca.stopped.wait
        pause(faults.get('delay', {}).get('seconds', 0))
        self.close_connection |= bool({'drop', 'cut', 'endless', 'close'} & set(faults))
        if 'drop' in faults:
            return
        self.send_response_only(reply.status)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        if 'endless' not in faults and reply.status != 204:
            self.send_header('Content-Length', str(len(reply.body)))
        self.end_headers()
        if self.command == 'HEAD':
            return
        body = reply.body[:len(reply.body) // 2] if 'cut' in faults else reply.body
        if 'dribble' in faults:
            for byte in body:
                self.wfile.write(bytes((byte,)))
                if pause(faults['dribble']['seconds']):
                    return
        else:
            self.wfile.write(body)
        while 'endless' in faults and not pause(0.01):
            self.wfile.write(b' ' * 65536)

    def log_message(self, *args):
        """The log is FakeCA.requests."""


class Server(socketserver.ThreadingTCPServer):
    # (Not http.server's own class, which asks DNS for the name of this machine.)
    allow_reuse_address = True
    request_queue_size = 50

    def __init__(self, port, ca):
        self.ca, self.sockets = ca, set()
        super().__init__(('127.0.0.1', port), Handler)

    def process_request(self, request, client_address):
        self.ca.in_background(self.process_request_thread, request, client_address)

    def handle_error(self, request, client_address):
        """Clients may hang up or fail to trust us; anything else is a bug here and is shown."""
        if not isinstance(sys.exc_info()[1], OSError) and not self.ca.stopped.is_set():
            super().handle_error(request, client_address)

    def stop(self):
        self.shutdown()
        for connection in list(self.sockets):
            hang_up(connection)
        self.server_close()


# ---- the authority ------------------------------------------------------------------------------

class FakeCA:
    """An ACME CA, running between `with` and its end (or start() and stop()).

    http_port     port on 127.0.0.1 where http-01 challenges are fetched
    validity      lifetime of certificates, from notBefore to notAfter
    backdate      how long before the moment of issue notBefore lies
    ca_key        'ec' or 'rsa': the kind of the CA's own keys
    reuse_authz   whether a name once authorized needs no challenge in the next order
    chain_length  number of intermediates
    validation_delay, issue_delay    how long a challenge, an order stay 'processing'
    retry_after   value (int or str) of Retry-After on answers that are not final
    port          where to listen, 0 for any free one
    folder        where the PKI goes (made anew); None: one for the whole process

    All but ca_key, chain_length, port and folder may be changed at any time, and so may
    clock_offset    how far the CA's clock is ahead of the real one
    bad_nonce_rate  share (0 to 1) of requests that are answered badNonce
    misissue        None or what is wrong with certificates: 'wrong_key', 'wrong_names',
                    'expired', 'not_yet', 'planted_key', 'shuffled'

    To look at:
    directory_url, bundle   what a client has to know: URL, path of the CA file
    requests        all requests: kind (see FIXED, OBJECTS), method, path, payload (dict, '' for
                    POST-as-GET, None), status (None: no answer), time
    connections     number of TCP connections so far
    issued          certificates: names, pem (leaf), chain (all of it), spki (SHA-256, hex), time,
                    not_before, not_after, revoked (reason or None)
    accounts        url, contact, thumbprint, status
    orders          url, names, status, authorizations (name, status, challenges)
    """

    def __init__(self, http_port=0, validity=90 * 86400, backdate=3600, ca_key='ec',
                 reuse_authz=False, chain_length=1, validation_delay=0, issue_delay=0,
                 retry_after=None, port=0, folder=None):
        self.http_port, self.validity, self.backdate = http_port, validity, backdate
        self.reuse_authz, self.retry_after = reuse_authz, retry_after
        self.validation_delay, self.issue_delay = validation_delay, issue_delay
        self.clock_offset, self.bad_nonce_rate, self.misissue = 0, 0, None
        self.pki = PKI(folder, ca_key, chain_length) if folder else PKI.get(ca_key, chain_length)
        self.bundle = self.pki.path('root.pem')
        self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.tls.load_cert_chain(self.pki.path('tls.pem'), self.pki.path('tls.key'))
        self.port, self.stopped = port, threading.Event()
        self.requests, self.connections, self.faults = [], 0, []
        self.accounts, self.orders, self.issued = [], [], []
        self.objects = {}           # path of a URL -> account, order, authorization or challenge
        self.nonces, self.last = set(), {}
        self.numbers, self.random = itertools.count(1), random.Random(0)
        self.lock, self.threads = threading.Lock(), []

    def start(self):
        self.server = Server(self.port, self)
        self.url = 'https://127.0.0.1:%d' % self.server.server_address[1]
        self.directory_url = self.url + '/directory'
        self.in_background(self.server.serve_forever, 0.02)
        return self

    def stop(self):
        self.stopped.set()
        self.server.stop()
        for thread in self.threads:
            thread.join()

    def __enter__(self):
        return self.start()

    def __exit__(self, *exception):
        self.stop()

    def in_background(self, function, *args):
        """Start and return a thread that stop() waits for, but not the end of a broken-off test."""
        thread = threading.Thread(target=function, args=args, daemon=True)
        thread.start()
        self.threads.append(thread)
        return thread

    def now(self):
        return time.time() + self.clock_offset

    # -- for tests

    def fault(self, kind, what, nth=1, times=1, **args):
        """Spoil the `nth` answer from now of `kind` ('*' for any) and the following, `times` in
        all (None: for ever), in the way `what`:

        without doing what was asked: 'status' (status, body, headers), 'problem' (status, type,
        detail, subproblems, headers), 'bad_nonce', 'redirect' (location), 'http_error_html'
        (status), 'repeat' (the last answer of this kind once more);
        after doing it: 'body' (body), 'edit' (edit: function(dict) -> dict or None),
        'edit_text' (edit: function(str) -> str), 'headers' (headers; None takes one away);
        on the way: 'drop', 'cut', 'delay' (seconds), 'dribble' (seconds a byte), 'endless',
        'close' (after a whole answer). `faults.clear()` ends them all.
        """
        if what not in TRANSPORT + REFUSALS + ALTERATIONS or kind not in KINDS:
            raise ValueError('no such fault: %s, %s' % (kind, what))
        self.faults.append(SimpleNamespace(kind=kind, what=what, nth=nth, times=times, args=args,
                                           seen=0))

    def clear(self):
        """Forget the requests logged so far."""
        del self.requests[:]

    def forget_accounts(self):
        """From now on, as if all accounts had been deleted."""
        for account in self.accounts:
            self.objects.pop(account.path)
        del self.accounts[:]

    # -- requests

    def respond(self, method, path, headers, body):
        """Do what a request asks for; return the Reply and its transport faults."""
        kind = FIXED.get(path) or OBJECTS.get((path + '/').split('/')[1])
        record = SimpleNamespace(kind=kind, method=method, path=path, payload=None, status=None,
                                 time=time.time())
        self.requests.append(record)
        faults = self.due_faults(kind)
        refusal = next(filter(None, (refuse(fault.what, fault.args, self.last.get(kind))
                                     for fault in faults)), None)
        try:
            if not headers.get('User-Agent'):
                raise Problem(400, 'malformed', 'a User-Agent is required')
            request = SimpleNamespace(method=method, kind=kind, object=self.objects.get(path))
            if kind not in ('directory', 'nonce'):
                if method != 'POST':
                    raise Problem(405, 'malformed', 'this takes POST, or POST-as-GET')
                self.authenticate(request, path, headers, body)
                record.payload = '' if request.reads else request.payload
            if path not in FIXED and not request.object:
                raise Problem(404, 'malformed', 'no such URL')
            reply = refusal or getattr(self, 'on_' + kind.replace('-', '_'))(request)
        except Problem as problem:
            reply = refusal or problem.reply
        if kind != 'directory' and reply.nonce:
            reply.headers['Replay-Nonce'] = secrets.token_urlsafe(16)
            self.nonces.add(reply.headers['Replay-Nonce'])
        reply.headers.setdefault('Link', '<%s>;rel="index"' % self.directory_url)
        reply.headers.setdefault('Date', email.utils.formatdate(self.now(), usegmt=True))
        self.last[kind] = Reply(reply.status, reply.body, reply.headers, nonce=reply.nonce)
        for fault in faults:
            alter(reply, fault.what, fault.args)
        transport = {fault.what: fault.args for fault in faults if fault.what in TRANSPORT}
        record.status = None if 'drop' in transport else reply.status
        return reply, transport

    def due_faults(self, kind):
        """Count this request against the ordered faults; return those that strike now."""
        due = []
        with self.lock:
            for fault in self.faults:
                if fault.kind in (kind, '*'):
                    fault.seen += 1
                    past = fault.seen - fault.nth
                    if past >= 0 and (fault.times is None or past < fault.times):
                        due.append(fault)
        return due

    def authenticate(self, request, path, headers, body):
        """Check a JWS (body, bytes) in all respects; give `request` payload
        (dict), reads (bool: POST-as-GET), jwk and, signed with a kid, account."""
        if headers.get('Content-Type') != 'application/jose+json':
            raise Problem(415, 'malformed', 'Content-Type must be application/jose+json')
        try:
            jws = json.loads(body)
            protected = json.loads(unb64(jws['protected']))
            payload, signature = unb64(jws['payload']), unb64(jws['signature'])
            request.payload = json.loads(payload) if payload else {}
            request.reads = not payload
            alg, nonce, url = (protected[name] for name in ('alg', 'nonce', 'url'))
            jwk, kid = protected.get('jwk'), protected.get('kid')
            if jwk is not None:
                jwk_spki(jwk)
            if not isinstance(request.payload, dict):
                raise ValueError
        except (ValueError, KeyError, TypeError, AttributeError):
            raise Problem(400, 'malformed', 'not a flattened JWS with alg, nonce and url')
        if payload and request.kind in ('order-poll', 'certificate'):
            raise Problem(400, 'malformed', 'this takes POST-as-GET')
        if 'header' in jws or (jwk is None) == (kid is None):
            raise Problem(400, 'malformed', 'one of jwk and kid is needed, all of it protected')
        if (jwk is None) != (request.kind != 'account') and request.kind != 'revoke':
            raise Problem(400, 'malformed', 'newAccount takes a jwk, all others a kid')
        if kid is not None:
            account = next((known for known in self.accounts if known.url == kid), None)
            if not account:
                raise Problem(400, 'accountDoesNotExist', 'no account %s' % kid)
            if account.status != 'valid':
                raise Problem(403, 'unauthorized', 'the account is ' + account.status)
            request.account, jwk = account, account.jwk
        request.jwk = jwk
        signed = (jws['protected'] + '.' + jws['payload']).encode()
        if not jws_signature_fits(alg, jwk, signature, signed):
            raise Problem(400, 'malformed', 'JWS verification error')
        if url != self.url + path:
            raise Problem(401, 'unauthorized', 'the signed url is ' + url)
        try:
            self.nonces.remove(nonce)
        except KeyError:
            raise Problem(400, 'badNonce', 'unknown or used nonce')
        if self.random.random() < self.bad_nonce_rate:
            raise Problem(400, 'badNonce', 'bad luck')
        if kid is not None and request.object and request.object.account is not account:
            raise Problem(403, 'unauthorized', 'belongs to another account')

    def add(self, kind, **members):
        """A new object with a URL of its own."""
        path = '/%s/%d' % (kind, next(self.numbers))
        self.objects[path] = SimpleNamespace(path=path, url=self.url + path, **members)
        return self.objects[path]

    def expiry(self):
        """When what is made now expires, as ACME writes it: in a week."""
        return time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime(self.now() + 7 * 86400))

    def waiting(self, reply, status):
        """`reply` with a Retry-After if `status` is not final and the test asked for it."""
        if self.retry_after is not None and status in ('pending', 'processing'):
            reply.headers['Retry-After'] = str(self.retry_after)
        return reply

    def on_directory(self, request):
        return Reply(body={
            'newNonce': self.url + '/new-nonce', 'newAccount': self.url + '/new-account',
            'newOrder': self.url + '/new-order', 'revokeCert': self.url + '/revoke',
            secrets.token_urlsafe(8): 'clients ignore what they do not know',
            'meta': {'termsOfService': self.url + '/terms', 'website': self.url}})

    def on_nonce(self, request):
        return Reply(200 if request.method == 'HEAD' else 204,
                     headers={'Cache-Control': 'no-store'})

    # -- accounts

    def on_account(self, request):
        thumbprint, asked = jwk_thumbprint(request.jwk), request.payload
        account = next((old for old in self.accounts if old.thumbprint == thumbprint), None)
        status = 200 if account else 201
        if not account:
            if asked.get('onlyReturnExisting'):
                raise Problem(400, 'accountDoesNotExist', 'no account with this key')
            if asked.get('termsOfServiceAgreed') is not True:
                raise Problem(403, 'userActionRequired', 'agree to the terms of service',
                              {'Link': '<%s/terms>;rel="terms-of-service"' % self.url},
                              instance=self.url + '/terms')
            account = self.add('account', jwk=request.jwk, thumbprint=thumbprint, status='valid',
                               contact=self.checked_contact(asked))
            account.account = account
            self.accounts.append(account)
        if account.status != 'valid':
            raise Problem(403, 'unauthorized', 'the account is ' + account.status)
        return self.account_reply(account, status, {'Location': account.url})

    def on_account_update(self, request):
        if 'contact' in request.payload:
            request.account.contact = self.checked_contact(request.payload)
        if request.payload.get('status') == 'deactivated':
            request.account.status = 'deactivated'
        return self.account_reply(request.account)

    def checked_contact(self, asked):
        """The contact list in a request, or a Problem."""
        for contact in asked.get('contact', []):
            if not contact.startswith('mailto:'):
                raise Problem(400, 'unsupportedContact', 'only mailto: is supported')
            if not re.match(r'mailto:[^@?#,\s]+@[^@?#,\s]+\Z', contact):
                raise Problem(400, 'invalidContact', 'not one mail address: ' + contact)
        return asked.get('contact', [])

    def account_reply(self, account, status=200, headers=None):
        return Reply(status, {'status': account.status, 'contact': account.contact}, headers)

    # -- orders

    def on_order(self, request):
        names = self.checked_names(request.payload)
        order = self.add('order', account=request.account, names=names, status='pending',
                         error=None, certificate=None, expires=self.expiry(),
                         authorizations=[self.authorization(request.account, name)
                                         for name in names])
        order.finalize = order.path.replace('order', 'finalize')
        order.download = order.path.replace('order', 'certificate')
        self.objects[order.finalize] = self.objects[order.download] = order
        self.orders.append(order)
        return self.order_reply(order, 201, {'Location': order.url})

    def checked_names(self, asked):
        """The DNS names in a newOrder, or a Problem."""
        try:
            names = [(entry['type'], entry['value']) for entry in asked['identifiers']]
        except (KeyError, TypeError):
            raise Problem(400, 'malformed', 'identifiers are missing')
        bad = [name for kind, name in names if kind != 'dns' or not re.match(
            r'(\*\.)?([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z][a-z0-9-]*[a-z0-9]\Z', name)]
        if bad or not names:
            raise Problem(400, 'rejectedIdentifier', 'not a name for a certificate', subproblems=[
                {'type': URN + 'rejectedIdentifier', 'detail': 'not a lower-case DNS name',
                 'identifier': {'type': 'dns', 'value': name}} for name in bad])
        if len(set(names)) < len(names) or 'notBefore' in asked or 'notAfter' in asked:
            raise Problem(400, 'malformed', 'a name twice, or dates in a newOrder')
        return [name for _, name in names]

    def authorization(self, account, name):
        """A new authorization, or with reuse_authz a valid one from before."""
        for old in list(self.objects.values()) if self.reuse_authz else ():
            if getattr(old, 'name', None) == name and old.account is account \
                    and old.status == 'valid':
                return old
        authz = self.add('authz', account=account, name=name, status='pending',
                         expires=self.expiry())
        # A client has to find http-01 among what it does not know; one of these has no token.
        types = [('x-persistent-01', None), ('x-other-01', b64(secrets.token_bytes(16)))]
        if not name.startswith('*.'):
            types.append(('http-01', b64(secrets.token_bytes(32))))
        authz.challenges = [self.add('challenge', account=account, authz=authz, type=kind,
                                     token=token, status='pending', error=None)
                            for kind, token in types]
        return authz

    def on_order_poll(self, request):
        return self.order_reply(request.object)

    def order_reply(self, order, status=200, headers=None):
        if order.status == 'pending':
            states = {authz.status for authz in order.authorizations}
            if states == {'valid'}:
                order.status = 'ready'
            elif states - {'valid', 'pending'}:
                order.status = 'invalid'
                order.error = {'type': URN + 'unauthorized', 'status': 403,
                               'detail': 'an authorization failed'}
        body = {'status': order.status, 'expires': order.expires,
                'identifiers': [{'type': 'dns', 'value': name} for name in order.names],
                'authorizations': [authz.url for authz in order.authorizations],
                'finalize': self.url + order.finalize}
        if order.error:
            body['error'] = order.error
        if order.status == 'valid':
            body['certificate'] = self.url + order.download
        return self.waiting(Reply(status, body, headers), order.status)

    # -- authorizations and challenges

    def on_authz(self, request):
        authz = request.object
        if request.payload.get('status') == 'deactivated':
            authz.status = 'deactivated'
        shown = [challenge for challenge in authz.challenges
                 if authz.status == 'pending' or challenge.status != 'pending']
        body = {'status': authz.status, 'expires': authz.expires,
                'identifier': {'type': 'dns', 'value': authz.name.replace('*.', '')},
                'challenges': [self.challenge_body(challenge) for challenge in shown]}
        if authz.name.startswith('*.'):
            body['wildcard'] = True
        return self.waiting(Reply(200, body), authz.status)

    def challenge_body(self, challenge):
        body = {'type': challenge.type, 'url': challenge.url, 'status': challenge.status}
        for name in 'token', 'error':
            if getattr(challenge, name):
                body[name] = getattr(challenge, name)
        return body

    def on_challenge(self, request):
        challenge = request.object
        if not request.reads and challenge.status == 'pending':
            if challenge.type != 'http-01' or request.payload:
                raise Problem(400, 'malformed', 'only {}, and only to http-01')
            challenge.status = 'processing'
            thread = self.in_background(self.validate, challenge)
            if not self.validation_delay:
                thread.join(1)      # most clients then find it valid at their first look
        reply = Reply(200, self.challenge_body(challenge),
                      {'Link': '<%s>;rel="up"' % challenge.authz.url})
        return self.waiting(reply, challenge.status)

    def validate(self, challenge):
        """Fetch the http-01 resource as a CA does, but from 127.0.0.1, and note the result."""
        self.stopped.wait(self.validation_delay)
        authz = challenge.authz
        expected = '%s.%s' % (challenge.token, challenge.account.thumbprint)
        connection = http.client.HTTPConnection('127.0.0.1', self.http_port, timeout=5)
        try:
            with contextlib.closing(connection):
                connection.request('GET', '/.well-known/acme-challenge/' + challenge.token,
                                   headers={'Host': authz.name})
                answer = connection.getresponse()
                found = answer.read(10000).decode(errors='replace').rstrip()
            error = None if answer.status == 200 and found == expected else (
                'unauthorized', 'status %d, "%.100s"' % (answer.status, found))
        except (OSError, http.client.HTTPException) as failure:
            error = 'connection', str(failure)
        if error:
            challenge.error = {'type': URN + error[0], 'status': 403, 'detail':
                               'http://%s/.well-known/acme-challenge/%s: %s'
                               % (authz.name, challenge.token, error[1])}
        challenge.status = authz.status = 'invalid' if error else 'valid'

    # -- certificates

    def on_finalize(self, request):
        order = request.object
        self.order_reply(order)     # brings its status up to date
        if order.status != 'ready':
            raise Problem(403, 'orderNotReady', 'the order is ' + order.status)
        spki, names = read_csr(unb64(request.payload.get('csr')))
        if names != set(order.names):
            raise Problem(400, 'badCSR', 'names differ from the order: ' + ', '.join(names))
        if spki in [jwk_spki(account.jwk) for account in self.accounts]:
            raise Problem(400, 'badCSR', 'the key is that of an account')
        order.status = 'processing'
        if self.issue_delay:
            self.in_background(self.issue, order, spki)
        else:
            self.issue(order, spki)
        return self.order_reply(order)

    def issue(self, order, spki):
        """Make the certificate of `order` for the key `spki`, in the way `misissue` says."""
        self.stopped.wait(self.issue_delay)
        start, names, wrong = self.now() - self.backdate, list(order.names), self.misissue
        if wrong == 'wrong_key':
            spki = self.pki.issuer[2]
        elif wrong == 'wrong_names':
            names[-1] = 'wrong.example.net'
        elif wrong == 'expired':
            start = self.now() - self.validity - 3600
        elif wrong == 'not_yet':
            start = self.now() + 86400
        common_name = names[0] if len(names[0]) <= 64 else ''
        leaf = self.pki.certificate(common_name, spki, (start, start + self.validity),
                                    [tlv(0x82, name.encode()) for name in names])
        chain = [leaf] + self.pki.intermediates
        if wrong == 'shuffled':
            chain = [leaf, self.pki.root] + self.pki.intermediates[::-1]
        order.certificate = '\n'.join(pem('CERTIFICATE', der) for der in chain)
        if wrong == 'planted_key':
            order.certificate += pem('PRIVATE KEY', b'not yours')
        self.issued.append(SimpleNamespace(
            names=names, der=leaf, pem=pem('CERTIFICATE', leaf), chain=order.certificate,
            spki=hashlib.sha256(spki).hexdigest(), time=self.now(), not_before=int(start),
            not_after=int(start + self.validity), account=order.account, public_key=spki,
            revoked=None))
        order.status = 'valid'

    def on_certificate(self, request):
        if not request.object.certificate:
            raise Problem(404, 'malformed', 'not issued yet')
        return Reply(200, request.object.certificate.encode(),
                     kind='application/pem-certificate-chain')

    def on_revoke(self, request):
        der = unb64(request.payload.get('certificate'))
        reason = request.payload.get('reason', 0)
        issued = [certificate for certificate in self.issued if certificate.der == der]
        if not issued:
            raise Problem(404, 'malformed', 'not a certificate of this CA')
        by_account = getattr(request, 'account', None) is issued[0].account
        if not by_account and jwk_spki(request.jwk) != issued[0].public_key:
            raise Problem(403, 'unauthorized', 'neither the account nor the key of it')
        if issued[0].revoked is not None:
            raise Problem(400, 'alreadyRevoked', 'that was done before')
        if reason not in (0, 1, 4, 5):
            raise Problem(400, 'badRevocationReason', 'reasons are 0, 1, 4 and 5')
        issued[0].revoked = reason
        return Reply()


# ---- by hand ------------------------------------------------------------------------------------

def seconds(text):
    """'90d', '12h', '30m' or '600' -> seconds."""
    units = {'d': 86400, 'h': 3600, 'm': 60, 's': 1}
    return int(text.rstrip('dhms')) * units.get(text[-1], 1)


def main():
    parser = argparse.ArgumentParser(description='An ACME CA for tests, on 127.0.0.1.')
    parser.add_argument('--port', type=int, default=0, help='where to listen (default: any)')
    parser.add_argument('--http-port', type=int, default=80, help='where challenges are fetched')
    parser.add_argument('--dir', help='directory for the CA bundle and keys (default: a new one)')
    parser.add_argument('--validity', type=seconds, default='90d', help='e.g. 90d, 12h, 600s')
    parser.add_argument('--ca-key', choices=('ec', 'rsa'), default='ec')
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    with FakeCA(args.http_port, args.validity, ca_key=args.ca_key, port=args.port,
                folder=args.dir) as ca:
        print('directory-url = %s\nca-bundle = %s' % (ca.directory_url, ca.bundle), flush=True)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            pass


if __name__ == '__main__':
    main()
