#!/usr/bin/env python3
"""Fuzzes what reads bytes of others: answers of CAs and DNS servers, keys, certificates, configs,
state files. Whatever they hold: the program's own errors and no other, no hang, little memory.

    pip install atheris                    # coverage-guided; --smoke does without, and sees less
    python3 tests/fuzz.py --seconds 60     # shared among all targets
    python3 tests/fuzz.py --target json --input eyJhIjoxfQ==     # one input again
"""
import argparse
import base64
import contextlib
import functools
import http.client
import io
import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
import types
from unittest import mock

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)
from tests.fake_ca import (  # noqa: E402
    CURVES, EC_KEY, ECDSA_SHA256, EXTENSION_REQUEST, NULL, RSA_KEY, SAN, bits, der_name, der_time,
    integer, oid, pem, tlv)

INPUT_SECONDS, INPUT_BYTES, MEGABYTES = 10, 16384, 600
NOW = 1800000000
NAMES = ['example.org', 'www.example.org']
acme = tiny = None      # the two files, imported by load()


class Finding(Exception):
    """Something that must not be, though nothing was raised."""


def load(atheris=None):
    """Import the program, with atheris so that it sees which lines are reached."""
    global acme, tiny
    with atheris.instrument_imports(include=[
            'acme_tiny', 'letsencrypt_tiny', 'email._parseaddr']) if atheris else (
                contextlib.nullcontext()):
        sys.modules.pop('email._parseaddr', None)
        import acme_tiny
        import letsencrypt_tiny
    acme, tiny = acme_tiny, letsencrypt_tiny
    # No other program is run, no TLS is spoken, and no clock decides.
    acme.openssl = tiny.openssl = no_openssl
    acme.https_opener = lambda *args: None
    acme.time = tiny.time = Clock()


def no_openssl(*args, **options):
    raise acme.ToolError('openssl is not run here')


class Clock:
    """In place of the module time: passes only while it is waited for, or 1 ms for each look."""
    gmtime, strftime = staticmethod(time.gmtime), staticmethod(time.strftime)

    def __init__(self):
        self.waited = 0

    def time(self):
        return NOW + self.waited

    def monotonic(self):
        self.waited += 0.001
        return self.waited

    def sleep(self, seconds):
        if not 0 <= seconds < 100:
            raise Finding('waits for %s seconds' % seconds)
        self.waited += seconds


def told(text, limit=5000, lines=1):
    """Check a text that people are to see."""
    text = str(text)
    if len(text) > limit or len(text.split('\n')) > lines or not all(
            line.isprintable() for line in text.split('\n')):
        raise Finding('told as %s' % ascii(text[:2000]))


@contextlib.contextmanager
def expected(*kinds):
    """These errors are what the program promises; their texts are for people."""
    try:
        yield
    except kinds as error:
        told(error)


# ---- what the inputs start from -----------------------------------------------------------------

SPKI = tlv(0x30, tlv(0x30, EC_KEY, CURVES['P-256'][0]), bits(b'\4' + bytes(range(64))))
RSA_SPKI = tlv(0x30, tlv(0x30, RSA_KEY, NULL),
               bits(tlv(0x30, integer(1 << 2047 | 1), integer(65537))))


def certificate(names=NAMES, spki=SPKI, issuer='issuer', subject='', end=NOW + 86400,
                critical=False):
    """A certificate (DER) with a signature of nobody."""
    san = tlv(0x30, *(tlv(0x82, name.encode()) for name in names))
    extensions = [tlv(0x30, oid('2.5.29.15'), tlv(4, tlv(3, b'\7\x80'))),
                  tlv(0x30, SAN, tlv(1, b'\xff') if critical else b'', tlv(4, san))]
    return tlv(0x30, tlv(0x30, tlv(0xa0, integer(2)), integer(77), ECDSA_SHA256, der_name(issuer),
                         tlv(0x30, der_time(NOW - 86400), der_time(end)), der_name(subject), spki,
                         tlv(0xa3, tlv(0x30, *extensions))), ECDSA_SHA256, bits(b'signature'))


def request(names=NAMES, subject='', spki=SPKI):
    san = tlv(0x30, *(tlv(0x82, name.encode()) for name in names))
    extensions = tlv(0x30, tlv(0x30, SAN, tlv(4, san)))
    attribute = tlv(0x30, EXTENSION_REQUEST, tlv(0x31, extensions))
    return tlv(0x30, tlv(0x30, integer(0), der_name(subject), spki, tlv(0xa0, attribute)),
               ECDSA_SHA256, bits(b'signature'))


def keys():
    """[(label, DER)] of private keys, as far as they are looked at."""
    curve = CURVES['P-256'][0]
    sec1 = tlv(0x30, integer(1), tlv(4, b'k' * 32), tlv(0xa0, curve), tlv(0xa1, bits(b'\4' * 65)))
    bare = tlv(0x30, integer(1), tlv(4, b'k' * 32), tlv(0xa1, bits(b'\4' * 65)))
    pkcs1 = tlv(0x30, integer(0), integer(1 << 2047 | 1), integer(65537), integer(3))
    found = [('EC PRIVATE KEY', sec1), ('RSA PRIVATE KEY', pkcs1)]
    for algorithm, key in ((tlv(0x30, EC_KEY, curve), bare), (tlv(0x30, RSA_KEY, NULL), pkcs1),
                           (tlv(0x30, oid('1.3.101.112')), tlv(4, b'k' * 32))):
        found.append(('PRIVATE KEY', tlv(0x30, integer(0), algorithm, tlv(4, key))))
    return found


CHAIN = pem('CERTIFICATE', certificate()) + pem('CERTIFICATE', certificate(
    [], RSA_SPKI, 'root', 'issuer'))


# ---- targets: a function of bytes, and what to begin with ---------------------------------------

def fuzz_json(data):
    with expected(acme.AcmeError):
        acme.parse_json(acme.Reply(200, {}, data))
        acme.parse_json(acme.Reply(200, {}, data), status=str, authorizations=list)
    try:
        value = json.loads(data.decode('utf-8', 'replace'))
    except (ValueError, RecursionError):
        return
    told(acme.problem_text(value))


def seeds_json():
    problem = {'type': 'urn:ietf:params:acme:error:malformed', 'detail': 'Wrong', 'status': 400,
               'instance': 'https://example.org/', 'subproblems': [
                   {'type': 'urn:x', 'detail': 'y', 'identifier': {'value': 'example.org'}}]}
    return [json.dumps(value).encode() for value in (
        problem, {'status': 'pending', 'authorizations': []}, [problem], None, 'x\x1b[2J',
        {'detail': None, 'subproblems': [None, 1, {'identifier': 'x'}]}, 1e300, {'a': '\ud800'})
            ] + [b'[' * 400 + b']' * 400, b'{"detail":' + b'{"a":' * 300 + b'1' + b'}' * 301]


def headers_of(data):
    """As http.client reads them. Raises HTTPException."""
    return http.client.parse_headers(io.BytesIO(data + b'\r\n\r\n'))


def fuzz_headers(data):
    try:
        headers = headers_of(data)
    except http.client.HTTPException:
        return
    for value in acme.retry_after(headers), acme.http_date(headers.get('Date')):
        if value is not None and not isinstance(value, (int, float)):
            raise Finding('a time of %r' % (value,))
    if (acme.retry_after(headers) or 0) < 0:
        raise Finding('negative Retry-After')
    with expected(acme.AcmeError):
        acme.location(acme.Reply(200, headers, b''))


def seeds_headers():
    return [text.encode() for text in (
        'Retry-After: 120\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\nLocation: https://example.org/',
        'Retry-After: Sunday, 06-Nov-94 08:49:37 GMT', 'Retry-After: Sun Nov  6 08:49:37 1994',
        'Retry-After: Sun, 06 Nov 1994 08:49:37 +0130\r\nDate: x', 'Retry-After: 99999999999999',
        'Retry-After: \r\n 5', 'Date: 6.11.94 8.49', 'Date: 06-Nov-94 08:49 EST', 'Date: ,,,')]


def fuzz_key(data):
    """The first byte says which label the rest gets, or none."""
    labels = 'PRIVATE KEY', 'EC PRIVATE KEY', 'RSA PRIVATE KEY', 'EC PARAMETERS', ''
    label = labels[data[0] % len(labels)] if data else ''
    text = pem(label, data[1:]) if label else data[1:].decode('ascii', 'replace')
    with expected(ValueError, acme.ToolError):
        acme.key_kind(acme.public_key(text))
    with expected(ValueError, acme.ToolError):
        acme.key_kind(data)
    write('key', text.encode())
    with expected(tiny.Problem):
        tiny.read_key(folder('key'))
    with expected(acme.AcmeError, acme.ToolError):
        acme.AccountKey(folder('key'))


def seeds_key():
    numbers = {'PRIVATE KEY': 0, 'EC PRIVATE KEY': 1, 'RSA PRIVATE KEY': 2}
    whole = [bytes([numbers[label]]) + der for label, der in keys()]
    text = [b'\4' + pem(label, der).encode() for label, der in keys()]
    return whole + text + [SPKI, RSA_SPKI, b'\4' + pem('EC PARAMETERS', CURVES['P-256'][0]).encode()
                           + text[0][1:], b'\4-----BEGIN ENCRYPTED PRIVATE KEY-----\n']


def fuzz_certificate(data):
    for function in acme.der, acme.inside, acme.parse_certificate:
        with expected(ValueError):
            function(data)
    write('crt', pem('CERTIFICATE', data).encode())
    tiny.read_crt(folder('crt'))


def seeds_certificate():
    return [certificate(), certificate(critical=True, end=4000000000), certificate([], RSA_SPKI),
            certificate(['x' * 200])]


def fuzz_request(data):
    with expected(ValueError):
        names, spki = acme.parse_csr(data)
        if not all(isinstance(name, str) for name in names):
            raise Finding(names)


def seeds_request():
    return [request(), request([], 'example.org'), request(['a'], 'b', RSA_SPKI)]


def fuzz_chain(data):
    """A text from the CA; or with a zero in front, one certificate of it in DER."""
    text = data.decode('ascii', 'replace')
    if data[:1] == b'\0':
        text = pem('CERTIFICATE', data[1:]) + CHAIN[CHAIN.rindex('-----BEGIN'):]
    with expected(acme.AcmeError):
        chain = acme.check_chain(text, SPKI, NAMES, NOW)
        blocks = acme.pem(chain)
        leaf = acme.parse_certificate(blocks[0][1])
        if set(re.findall('-----BEGIN (.*)-----', chain)) != {'CERTIFICATE'} or (
                leaf.spki, set(leaf.names)) != (SPKI, set(NAMES)) or leaf.not_after <= NOW or (
                    re.sub('-----(BEGIN|END) CERTIFICATE-----|[A-Za-z0-9+/=]{1,64}|\n', '', chain)):
            raise Finding('accepted')
    write('crt', data)
    tiny.read_crt(folder('crt'))


def seeds_chain():
    return [CHAIN.encode(), CHAIN.replace('\n', '\r\n').encode(), b'\0' + certificate(),
            (CHAIN + pem('PRIVATE KEY', b'x')).encode(), b'Subject: x\n' + CHAIN.encode(),
            pem('CERTIFICATE', certificate(['evil.example.net'])).encode()]


def fuzz_config(data):
    write('config', data)
    with expected(tiny.Problem):
        tiny.read_config(folder('config'))
    with expected(tiny.Problem):
        tiny.read_ini(data.decode('utf-8', 'replace'))


CONFIG = '''domains = example.org www.example.org
key-type = ec-p256
[timing]
max-key-age-days = 365.5
staging-hours = 24
[acme]
account-key = /etc/le/account.key
challenge-dir: /srv/challenges
self-check = warn
[dane]
tlsa = _25._tcp.mx.example.org
served = mx.example.org:25/smtp [2001:db8::1]:443
dns-resolver = 127.0.0.1@5353
dns-servers = 192.0.2.1 2001:db8::1@53
[dirs]
certs = /etc/le/certs
keys = /etc/le/keys
backups = /etc/le/backups
'''


def seeds_config():
    return [text.encode('utf-8', 'surrogatepass') for text in (
        CONFIG, '\ufeff' + CONFIG.replace('\n', '\r\n'), CONFIG + 'contact = a@example.org, b@x\n',
        CONFIG.replace(' www', '\n  www\n\tb\u00fccher'), CONFIG + 'hook-timeout = nan\n',
        CONFIG.replace('example', '\u1e9e\u0130\u2024\u3002\ud800'), CONFIG + 'live = ../x\n',
        CONFIG + 'proxy = http://proxy:3128\ndirectory-url = https://[::1]/\n', 'domain = x\n',
        CONFIG.replace('ec-p256', 'rsa\nkey-length = 2048'), CONFIG + 'Domains = x\n', '[x\n = y')]


def fuzz_state(data):
    """Everything that looks at the state; in its first byte, what else is there."""
    config, flags = facts_config(), data[0] if data else 0
    write('line/certs/live.state', data[1:])
    state = tiny.read_state(config, NOW)
    key = tiny.Key('a' * 64, 'ec-p256', 256, NOW - 400 * 86400 * (flags & 1))
    crt = tiny.Crt(tuple(NAMES), NOW - 86400, NOW + 89 * 86400 * (flags >> 1 & 1), key.spki, 'c')
    other = tiny.Key('b' * 64, 'ec-p256', 256, NOW) if flags & 4 else None
    facts = tiny.Facts(key, crt, other, other and crt._replace(spki='b' * 64), state,
                       hooks=bool(flags & 8))
    said = []
    with contextlib.ExitStack() as stack:
        for name, value in (('write_file', lambda file, data, *args, **options: json.loads(data)),
                            ('emit', lambda fd, text: said.append(text)), ('client_of', refuse)):
            stack.enter_context(mock.patch.object(tiny, name, value))
        stack.enter_context(mock.patch.object(tiny.Run, 'facts', lambda run: facts))
        stack.enter_context(mock.patch.object(tiny, 'read_file', {
            tiny.place(config, 'live', 'state'): data[1:]}.get))
        run = tiny.Run(config, facts.hooks)
        tiny.status(config)
        step = tiny.decide(config, facts, NOW)
        if step.verb == 'wait':
            tiny.conclude(run, facts, step, NOW)
        elif step.verb == 'request':
            stack.enter_context(mock.patch.object(tiny, 'read_file', lambda file, must=False: (
                KEY if file.endswith('.key') else data[1:])))
            tiny.request(run, facts, step.what)
        with expected(OSError):
            tiny.clean_up(config)


KEY = pem(*keys()[0]).encode()


def refuse(*args):
    raise acme.AcmeError('refused')


@functools.lru_cache()
def facts_config():
    write('line/certs/live.crt', CHAIN.encode())
    write('config', CONFIG.replace('/etc/le', folder('line')).encode() + (
        'post-certchange = /bin/true\npost-keychange = /bin/true\n').encode())
    return tiny.read_config(folder('config'))


def seeds_state():
    retry = {'count': 2, 'after': NOW + 60, 'server': False, 'names': NAMES, 'error': 'x',
             'directory': 'https://acme-v02.api.letsencrypt.org/directory'}
    account = {'directory': retry['directory'], 'url': 'https://x', 'thumbprint': 'y'}
    states = [{}, {'retry': retry}, {'retry': dict(retry, server=True, after=NOW + 7 * 86400)},
              {'account': account, 'certchange': 'c', 'keychange': ['a' * 64, None]},
              {'published': NOW - 90000, 'seen': NOW - 90000, 'ttl': 3600, 'told': NOW},
              {'challenges': ['/nowhere/x'], 'owed': ['c', 'post-certchange']},
              {'retry': dict(retry, count=-5, names=[]), 'seen': 1e300, 'ttl': -1}, [['a', 1]]]
    texts = [json.dumps(state) for state in states]
    texts += ['{"retry": NaN, "seen": Infinity, "ttl": NaN}'] + [
        '{"keychange": %s1%s}' % ('[' * depth, ']' * depth) for depth in (300, 1200)]
    return [bytes([flags]) + text.encode() for text in texts for flags in (0, 3, 15)]


class Script:
    """An opener whose answers are pieces of the input: status, headers, body."""

    def __init__(self, pieces):
        self.pieces, self.length = pieces, 0

    def open(self, request):
        if not request.full_url.lower().startswith('https://'):
            raise Finding('asks ' + request.full_url)
        if not self.pieces:
            raise ConnectionResetError('no more')
        head, _, body = self.pieces.pop(0).partition(b'\n\n')
        status, _, head = head.partition(b'\n')
        self.status = int(status) if re.match(rb'[1-5][0-9][0-9]\Z', status) else 200
        self.headers, self.body = headers_of(head), body
        return self

    def read(self, size):
        return self.body[:size]


class Solver:
    kind = 'http-01'

    def __init__(self):
        self.placed = self.removed = False

    def present(self, tasks):
        self.placed = True
        for name, token, text in tasks:
            if name not in NAMES or not re.match(r'[A-Za-z0-9_-]+\Z', token) or (
                    text != token + '.thumb'):
                raise Finding('challenge %r' % ((name, token, text),))

    def remove(self):
        self.removed = True


def fuzz_client(data):
    """A whole order, with answers from the input; its first byte says if the account is known."""
    flags = data[0] if data else 0
    client = acme.Client('https://ca.example/directory', types.SimpleNamespace(
        alg='ES256', jwk={'kty': 'EC'}, thumbprint='thumb', sign=lambda data: b'signature'),
        'https://ca.example/account' if flags & 1 else None,
        ['mailto:a@example.org'] if flags & 2 else None,
        log=lambda text: told(text, 20000, 1000))
    client.opener, solver, acme.time.waited = Script(data[1:].split(b'\n%%\n')), Solver(), 0
    with expected(acme.AcmeError):
        fuzz_chain(client.obtain(NAMES, b'request', SPKI, solver).encode())
    if solver.placed and not solver.removed:
        raise Finding('challenges stay')


def seeds_client():
    def answer(body, status=200, **headers):
        lines = ['%d' % status, 'Replay-Nonce: n', 'Date: Fri, 15 Jan 2027 08:00:00 GMT'] + [
            '%s: %s' % (name.replace('_', '-'), value) for name, value in headers.items()]
        return '\n'.join(lines) + '\n\n' + (body if isinstance(body, str) else json.dumps(body))

    url = 'https://ca.example/'
    directory = answer({name: url + name for name in ('newNonce', 'newAccount', 'newOrder')})
    nonce = answer('')
    account = answer({'status': 'valid', 'contact': ['mailto:a@example.org']}, 201,
                     Location=url + 'account')
    body = {'status': 'pending', 'authorizations': [url + 'a', url + 'b'], 'finalize': url + 'f'}
    order = answer(body, 201, Location=url + 'order')
    authz = [{'status': 'pending', 'identifier': {'type': 'dns', 'value': name}, 'challenges': [
        {'type': 'http-01', 'url': url + 'c', 'token': 'token', 'status': 'pending'}]}
        for name in NAMES]
    done = answer(dict(body, status='valid', certificate=url + 'crt'))
    ready, chain = answer(dict(body, status='ready')), answer(CHAIN)
    problem = answer({'type': 'urn:ietf:params:acme:error:badNonce', 'detail': 'x'}, 400)
    away = answer('{}', 429, Retry_After='Fri, 15 Jan 2027 09:00:00 GMT')
    asked = [answer(row) for row in authz] + [answer({})] * 2
    failed = [answer(dict(row, status='invalid', challenges=[dict(
        row['challenges'][0], error={'detail': 'x'})])) for row in authz]
    flows = [
        (0, [directory, nonce, account, order, *asked, ready, done, chain]),
        (1, [directory, nonce, order, *asked, ready, done, chain]),
        (3, [directory, nonce, answer({}, 500), account, order, *asked, ready, done, chain]),
        (2, [directory, nonce, account.replace('201', '200'), account, order, *asked, ready,
             answer(dict(body, status='processing'), Retry_After=1), done, chain]),
        (1, [directory, nonce, problem, order, *asked, answer(dict(body, status='invalid')),
             *failed]),
        (1, [directory, nonce, order, *asked] + [answer(body)] * 7 + failed),
        (1, [directory, nonce, done.replace('\n\n', '\nLocation: https://ca.example/o\n\n', 1),
             chain]),
        (1, [directory, nonce, answer(dict(body, status='ready'), Location=url + 'o'), done,
             chain]),
        (1, [directory, nonce, away])]
    return [bytes([flags]) + '\n%%\n'.join(flow).encode() for flags, flow in flows]


def fuzz_dns(data):
    """The look at TLSA records, with answers from the input behind the question that was asked."""
    with expected(ValueError, IndexError):
        tiny.dns_parse(data)
    pieces = data.split(b'\n%%\n')

    def send(server, query, way):
        piece = pieces.pop(0) if pieces else b''
        return query[:2] + piece[:10] + query[12:-11] + piece[10:]

    config = facts_config()
    key = tiny.Key('a' * 64, 'ec-p256', 256, NOW)
    with mock.patch.object(tiny, 'dns_send', send):
        problems, ttl, stale = tiny.look_at_dns(config, tiny.Facts(key, None, None, None, {}))
    for text in problems + stale:
        told(text)


def seeds_dns():
    def record(kind, data, ttl=3600, owner=b'\xc0\x0c'):
        return owner + bytes([0, kind, 0, 1]) + ttl.to_bytes(4, 'big') + len(data).to_bytes(
            2, 'big') + data

    def answer(*records, flags=b'\x85\xa0', authority=()):
        return flags + bytes([0, 1, 0, len(records), 0, len(authority), 0, 0]) + b''.join(
            records + tuple(authority))

    import hashlib
    tlsa = record(52, b'\3\1\1' + hashlib.sha256(SPKI).digest())
    alias = record(5, b'\2mx\7example\3net\0')
    soa = record(6, b'\1a\0\1b\0' + bytes(20), owner=b'\7example\3org\0')
    host, ns = record(1, bytes([192, 0, 2, 1])), record(2, b'\2ns\xc0\x0c')
    flows = [[answer(host), answer(tlsa), answer(tlsa), answer(tlsa)],
             [answer(alias, host), answer(tlsa), answer(tlsa), answer(tlsa), answer(tlsa)],
             [answer(host), answer(tlsa, record(52, b'\2\0\2' + bytes(64)))] * 2,
             [answer(), answer(authority=[soa]), answer(ns), answer(host), answer(tlsa)],
             [answer(flags=b'\x81\x83'), answer(flags=b'\x81\x82'), answer(flags=b'\x83\xa0')],
             [answer(record(5, b'\5\x1b[2Jx\0'), tlsa)] * 4]
    return [b'\n%%\n'.join(flow) for flow in flows] + [b'\0\0' + flow[0] for flow in flows] + [
        bytes([0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0xc0, 0x0c])]


TARGETS = {name[5:]: (value, globals()['seeds_' + name[5:]])
           for name, value in list(globals().items()) if name.startswith('fuzz_')}

# ---- running them -------------------------------------------------------------------------------

scratch = None      # a TemporaryDirectory


def folder(name):
    return os.path.join(scratch.name, name)


def write(name, data):
    try:
        with open(folder(name), 'wb') as file:
            file.write(data)
    except FileNotFoundError:
        os.makedirs(os.path.dirname(folder(name)))
        write(name, data)


def guided(name, seconds, seed):
    """Run one target under atheris; ends the process."""
    import atheris
    load(atheris)
    function, seeds = TARGETS[name]
    for number, data in enumerate(seeds()):
        write('corpus-%s/%d' % (name, number), data)
    atheris.Setup([sys.argv[0], '-max_total_time=%d' % max(1, seconds), '-seed=%d' % seed,
                   '-timeout=%d' % INPUT_SECONDS, '-rss_limit_mb=%d' % MEGABYTES,
                   '-max_len=%d' % INPUT_BYTES, '-artifact_prefix=' + folder('found-'),
                   '-print_final_stats=1', folder('corpus-' + name)], function)
    atheris.Fuzz()


def mutated(rng, seeds):
    """A random variation of a random seed."""
    data = bytearray(rng.choice(seeds))
    for _ in range(rng.choice((0, 1, 1, 2, 4, 16))):
        at, size = rng.randint(0, len(data)), rng.choice((1, 1, 2, 8, 64))
        other = rng.choice(seeds)
        start = rng.randint(0, len(other))
        data[at:at + rng.choice((0, size))] = rng.choice((
            bytes(rng.randrange(256) for _ in range(rng.randint(0, size))),
            other[start:start + size * 4], data[at:at + size] * 3,
            rng.choice((b'\0', b'\xff', b'\x80', b'\x84\xff\xff\xff\xff', b'\x1b[2J', b'null', b'[',
                        b'"', b'-1', b'1e999', b'\n', b'-----BEGIN ', b'\xe2\x80\xae'))))
    return bytes(data[:INPUT_BYTES])


def unguided(name, seconds, seed):
    """Run one target on random variations of its seeds, and print as libFuzzer does."""
    def late(*args):
        raise Finding('takes longer than %d seconds' % INPUT_SECONDS)

    load()
    function, make = TARGETS[name]
    seeds, rng, runs, end = make(), random.Random(seed), 0, time.monotonic() + seconds
    resource.setrlimit(resource.RLIMIT_AS, (MEGABYTES << 20, MEGABYTES << 20))
    signal.signal(signal.SIGALRM, late)
    while runs < len(seeds) or time.monotonic() < end:
        data = seeds[runs] if runs < len(seeds) else mutated(rng, seeds)
        signal.alarm(INPUT_SECONDS)
        try:
            function(data)
        except BaseException:
            write('found-input', data)
            raise
        runs += 1
    signal.alarm(0)
    print('stat::number_of_executed_units: %d' % runs)


def run(name, seconds, options):
    """Run one target in a process of its own; return whether it found nothing, and tell."""
    command = [sys.executable, os.path.abspath(__file__), '--child', name, '--scratch',
               scratch.name, '--seconds', str(seconds), '--seed', str(options.seed)]
    if options.smoke:
        command.append('--smoke')
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, timeout=seconds + 120)
        status, log = done.returncode, done.stdout.decode('utf-8', 'replace')
    except subprocess.TimeoutExpired as late:
        status, log = 'no end', (late.stdout or b'').decode('utf-8', 'replace')
    runs = re.search(r'number_of_executed_units: ([0-9]+)', log)
    print('%-12s %8s runs  %s' % (name, runs.group(1) if runs else '?',
                                  'ok' if status == 0 else 'FAILED'), flush=True)
    if status == 0 and runs and int(runs.group(1)) >= len(TARGETS[name][1]()):
        return True
    trace = re.search(r' === .*?(?=\n==[0-9]+==)', log, re.S)
    print('exit status %s\n%s' % (status, trace.group() if trace else log[-5000:]))
    for found in sorted(os.listdir(scratch.name)):
        if found.startswith('found-'):
            with open(folder(found), 'rb') as file:
                data = file.read()
            print('input: %s\nagain: --target %s --input %s' % (
                ascii(data[:4000]), name, base64.b64encode(data).decode()))
            os.unlink(folder(found))
    return False


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--seconds', type=float, default=60, help='for all targets together')
    parser.add_argument('--seed', type=int, help='for the same inputs again (default: any)')
    parser.add_argument('--target', choices=sorted(TARGETS), action='append', help='only this')
    parser.add_argument('--input', help='run the target once with this input (base64)')
    parser.add_argument('--smoke', action='store_true', help='plain random inputs, no atheris')
    parser.add_argument('--child', help=argparse.SUPPRESS)
    parser.add_argument('--scratch', help=argparse.SUPPRESS)
    options = parser.parse_args()
    global scratch
    if options.child:
        scratch = types.SimpleNamespace(name=options.scratch)
        return (unguided if options.smoke else guided)(options.child, options.seconds, options.seed)
    memory = '/dev/shm' if os.access('/dev/shm', os.W_OK) else None
    scratch = tempfile.TemporaryDirectory(prefix='fuzz-', dir=memory)
    with scratch:
        if options.input is not None:
            load()
            return TARGETS[options.target[0]][0](base64.b64decode(options.input))
        options.seed = options.seed or random.SystemRandom().randrange(1, 1 << 31)
        targets, failed = options.target or sorted(TARGETS), 0
        print('seed %d' % options.seed, flush=True)
        for name in targets:
            failed += not run(name, options.seconds / len(targets), options)
        print('%d passed, %d failed, 0 skipped' % (len(targets) - failed, failed))
        return failed > 0


if __name__ == '__main__':
    sys.exit(main())
