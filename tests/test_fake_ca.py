"""The test CA itself: a client that shares no code with it gets real certificates from it, and is
refused or ill-treated where it should be."""
import base64
import hashlib
import http.client
import json
import os
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import unittest
import urllib.request

from tests import fake_ca
from tests.fake_ca import FakeCA
from tests.support import Web, cert_dates, cert_names, openssl, pair_matches, spki, wait_for


def b64(data):
    return base64.urlsafe_b64encode(data).decode().rstrip('=')


def spoiled(data):
    """`data` with its last bit turned."""
    return data[:-1] + bytes((data[-1] ^ 1,))


class Client:
    """Just enough of an ACME client; `key` is 'RS256', 'ES256' or 'ES384'."""
    KEYS = {'RS256': ('RSA', 'rsa_keygen_bits:2048'), 'ES256': ('EC', 'ec_paramgen_curve:P-256'),
            'ES384': ('EC', 'ec_paramgen_curve:P-384')}

    def __init__(self, ca, folder, key='ES256'):
        self.ca, self.alg, self.kid, self.nonce = ca, key, None, None
        self.folder, self.key = folder, os.path.join(folder, 'account-%s.key' % key)
        if not os.path.exists(self.key):
            make_key(self.key, key)
        if key == 'RS256':
            modulus = openssl('rsa', '-in', self.key, '-noout', '-modulus').decode().strip()
            self.jwk = {'e': 'AQAB', 'kty': 'RSA', 'n': b64(bytes.fromhex(modulus.split('=')[1]))}
        else:
            size = int(key[2:]) // 8
            point = openssl('pkey', '-in', self.key, '-pubout', '-outform', 'DER')[-2 * size:]
            self.jwk = {'crv': 'P-' + key[2:], 'kty': 'EC', 'x': b64(point[:size]),
                        'y': b64(point[size:])}
        canonical = json.dumps(self.jwk, sort_keys=True, separators=(',', ':')).encode()
        self.thumbprint = b64(hashlib.sha256(canonical).digest())
        self.connection = http.client.HTTPSConnection(
            '127.0.0.1', ca.server.server_address[1], timeout=10,
            context=ssl.create_default_context(cafile=ca.bundle))

    def request(self, method, url, body=None, **headers):
        """(status, headers, body) of one request."""
        headers = dict({'User-Agent': 'test', 'Content-Type': 'application/jose+json'}, **headers)
        self.connection.request(method, url.replace(self.ca.url, ''), body, headers)
        answer = self.connection.getresponse()
        body = answer.read()
        self.nonce = answer.headers.get('Replay-Nonce')
        return answer.status, answer.headers, body

    def post(self, target, payload, tamper=None, **protected):
        """(status, headers, parsed JSON or bytes) of a signed request to the URL `target`."""
        if not self.nonce:
            self.request('HEAD', self.ca.url + '/new-nonce')
        protected = dict({'alg': self.alg, 'nonce': self.nonce, 'url': target}, **protected)
        if 'jwk' not in protected:
            protected.update({'kid': self.kid} if self.kid else {'jwk': self.jwk})
        jws = {'protected': b64(json.dumps(protected).encode()),
               'payload': '' if payload == '' else b64(json.dumps(payload).encode())}
        signature = self.sign((jws['protected'] + '.' + jws['payload']).encode())
        jws['signature'] = b64(tamper(signature) if tamper else signature)
        status, headers, body = self.request('POST', target, json.dumps(jws))
        is_json = 'json' in headers.get('Content-Type', '')
        return status, headers, json.loads(body) if is_json else body

    def sign(self, data):
        data = subprocess.run(['openssl', 'dgst', '-sha' + self.alg[2:], '-sign', self.key],
                              input=data, stdout=subprocess.PIPE, check=True).stdout
        if self.alg == 'RS256':
            return data
        size, numbers, data = int(self.alg[2:]) // 8, b'', data[2:]
        while data:
            number = int.from_bytes(data[2:2 + data[1]], 'big')
            numbers, data = numbers + number.to_bytes(size, 'big'), data[2 + data[1]:]
        return numbers

    def register(self, **payload):
        payload = dict({'termsOfServiceAgreed': True}, **payload)
        status, headers, _ = self.post(self.ca.url + '/new-account', payload)
        self.kid = headers['Location']
        return status

    def order(self, *names):
        """(URL, order) of a new order for which all challenges are answered."""
        _, headers, order = self.post(self.ca.url + '/new-order', {
            'identifiers': [{'type': 'dns', 'value': name} for name in names]})
        for url in order['authorizations']:
            _, _, authz = self.post(url, '')
            if authz['status'] == 'pending':
                challenge, = [c for c in authz['challenges'] if c['type'] == 'http-01']
                with open(os.path.join(self.folder, challenge['token']), 'w') as file:
                    file.write(challenge['token'] + '.' + self.thumbprint)
                self.post(challenge['url'], {})
        return headers['Location'], self.poll(headers['Location'], 'ready', 'invalid')

    def poll(self, url, *states):
        return wait_for(lambda: next((found for found in [self.post(url, '')[2]]
                                      if found['status'] in states), None), 5, 'status')

    def certificate(self, *names, key='leaf.key'):
        """Path of the chain obtained for `names`."""
        url, order = self.order(*names)
        self.finalize(order, names, key)
        order = self.poll(url, 'valid')
        status, headers, chain = self.post(order['certificate'], '')
        path = os.path.join(self.folder, 'chain.pem')
        with open(path, 'wb') as file:
            file.write(chain)
        return path

    def finalize(self, order, names, key='leaf.key', harm=None):
        """The answer to finalize with a CSR for `names`, DER changed by `harm`."""
        config = os.path.join(self.folder, 'csr.conf')
        with open(config, 'w') as file:
            file.write('[req]\ndistinguished_name=dn\nreq_extensions=ext\n[dn]\n[ext]\n'
                       'subjectAltName=' + ','.join('DNS:' + name for name in names))
        csr = openssl('req', '-new', '-subj', '/', '-config', config, '-outform', 'DER',
                      '-key', os.path.join(self.folder, key))
        return self.post(order['finalize'], {'csr': b64(harm(csr) if harm else csr)})


def make_key(path, kind):
    algorithm, option = Client.KEYS[kind]
    openssl('genpkey', '-algorithm', algorithm, '-pkeyopt', option, '-out', path)


class FakeCATest(unittest.TestCase):

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = folder.name
        self.web = Web(self.folder)
        self.web.__enter__()
        self.addCleanup(self.web.__exit__)
        make_key(self.path('leaf.key'), 'ES256')

    def path(self, name):
        return os.path.join(self.folder, name)

    def start(self, key='ES256', register=True, **options):
        """A new CA and a client of it."""
        ca = FakeCA(http_port=self.web.port, **options).start()
        self.addCleanup(ca.stop)
        client = Client(ca, self.folder, key)
        self.addCleanup(client.connection.close)
        if register:
            client.register()
        return ca, client

    def assert_problem(self, answer, status, type):
        self.assertEqual((answer[0], answer[2]['type'].split(':')[-1]), (status, type))


class Issuing(FakeCATest):

    def check_chain(self, ca, chain, names):
        openssl('verify', '-x509_strict', '-CAfile', ca.bundle, '-untrusted', chain,
                '-verify_hostname', names[0], chain)
        self.assertTrue(pair_matches(self.path('leaf.key'), chain))
        self.assertEqual(cert_names(chain), list(names))

    def test_certificates(self):
        names = 'example.org', 'www.example.org'
        for alg, ca_key, length in ('ES256', 'ec', 2), ('ES384', 'ec', 0), ('RS256', 'rsa', 1):
            with self.subTest(alg=alg, ca_key=ca_key):
                ca, client = self.start(alg, ca_key=ca_key, chain_length=length)
                chain = client.certificate(*names)
                self.check_chain(ca, chain, names)
                self.assertEqual(ca.issued[0].spki, spki(self.path('leaf.key')))
                start, end = cert_dates(chain)
                self.assertEqual(end - start, ca.validity)
                self.assertLess(abs(start + ca.backdate - time.time()), 10)
                self.assertEqual(ca.connections, 1)
        self.assertEqual([host for host, _ in self.web.hits], list(names) * 3)

    def test_short_life_and_another_clock(self):
        ca, client = self.start(validity=100, backdate=7)
        ca.clock_offset = 40 * 365 * 86400
        start, end = cert_dates(client.certificate('example.org'))
        self.assertEqual(end - start, 100)
        self.assertLess(abs(start + 7 - ca.now()), 10)


    def test_authorizations_are_reused_where_asked(self):
        ca, client = self.start(reuse_authz=True)
        client.certificate('example.org')
        client.certificate('example.org')
        self.assertEqual(len(self.web.hits), 1)
        ca.reuse_authz = False
        client.certificate('example.org')
        self.assertEqual(len(self.web.hits), 2)

    def test_slow_validation_and_issue(self):
        ca, client = self.start(validation_delay=0.1, issue_delay=0.1, retry_after=3)
        url, order = client.order('example.org')
        _, headers, order = client.finalize(order, ['example.org'])
        self.assertEqual((order['status'], headers['Retry-After']), ('processing', '3'))
        self.assertNotIn('certificate', order)
        client.poll(url, 'valid')
        _, headers, _ = client.post(url, '')
        self.assertNotIn('Retry-After', headers)

    def test_misissue(self):
        ca, client = self.start()

        def issue(how):
            ca.misissue = how
            chain = client.certificate('example.org', 'www.example.org')
            with open(chain) as file:
                return chain, file.read()

        self.assertFalse(pair_matches(self.path('leaf.key'), issue('wrong_key')[0]))
        self.assertEqual(cert_names(issue('wrong_names')[0]), ['example.org', 'wrong.example.net'])
        self.assertLess(cert_dates(issue('expired')[0])[1], time.time())
        self.assertGreater(cert_dates(issue('not_yet')[0])[0], time.time())
        self.assertIn('PRIVATE KEY', issue('planted_key')[1])
        self.assertEqual(issue('shuffled')[1].count('BEGIN'), 3)
        self.assertEqual(issue(None)[1].count('BEGIN'), 2)

    def test_revocation(self):
        ca, client = self.start()
        der = openssl('x509', '-in', client.certificate('example.org'), '-outform', 'DER')
        url, request = ca.url + '/revoke', {'certificate': b64(der), 'reason': 4}
        other = Client(ca, self.folder, 'ES384')
        self.addCleanup(other.connection.close)
        other.register()
        self.assert_problem(other.post(url, request), 403, 'unauthorized')
        self.assert_problem(client.post(url, dict(request, reason=3)), 400, 'badRevocationReason')
        self.assertEqual(client.post(url, request)[0], 200)
        self.assertEqual(ca.issued[0].revoked, 4)
        os.replace(self.path('leaf.key'), client.key)
        by_key = Client(ca, self.folder)
        self.addCleanup(by_key.connection.close)
        self.assert_problem(by_key.post(url, request), 400, 'alreadyRevoked')


class Refusals(FakeCATest):

    def test_accounts(self):
        ca, client = self.start(register=False)
        url = ca.url + '/new-account'
        self.assert_problem(client.post(url, {'onlyReturnExisting': True}),
                            400, 'accountDoesNotExist')
        self.assert_problem(client.post(url, {}), 403, 'userActionRequired')
        self.assertEqual(client.register(contact=['mailto:a@example.org']), 201)
        account = client.kid
        self.assertEqual(client.post(account, {'contact': []})[0], 200)
        self.assertEqual(ca.accounts[0].contact, [])
        self.assert_problem(client.post(account, {'contact': ['tel:1']}),
                            400, 'unsupportedContact')
        client.kid = None
        self.assertEqual((client.register(), client.kid), (200, account))
        ca.forget_accounts()
        self.assert_problem(client.post(account, ''), 400, 'accountDoesNotExist')

    def test_signed_requests(self):
        ca, client = self.start()
        url = ca.url + '/new-order'
        used = client.nonce
        client.post(client.kid, '')
        self.assert_problem(client.post(client.kid, '', nonce=used), 400, 'badNonce')
        self.assert_problem(client.post(client.kid, '', nonce='mine'), 400, 'badNonce')
        self.assert_problem(client.post(client.kid, '', tamper=spoiled),
                            400, 'malformed')
        self.assert_problem(client.post(client.kid, '', tamper=lambda s: s[:-1]), 400, 'malformed')
        self.assert_problem(client.post(client.kid, '', url=url), 401, 'unauthorized')
        self.assert_problem(client.post(client.kid, '', jwk=client.jwk), 400, 'malformed')
        self.assert_problem(client.post(client.kid, '', alg='RS256'),
                            400, 'badSignatureAlgorithm')
        self.assertEqual(client.post(client.kid, '')[0], 200)
        ca.bad_nonce_rate = 1
        self.assert_problem(client.post(client.kid, ''), 400, 'badNonce')
        self.assertEqual(client.request('POST', url, **{'Content-Type': 'application/json'})[0],
                         415)
        self.assertEqual(client.request('GET', client.kid)[0], 405)
        self.assertEqual(client.request('GET', ca.directory_url, **{'User-Agent': ''})[0], 400)
        self.assertEqual(client.request('GET', ca.url + '/order')[0], 405)

    def test_orders(self):
        ca, client = self.start()
        for name in 'Example.org', 'localhost', 'a..example.org', '192.0.2.1':
            self.assert_problem(client.post(ca.url + '/new-order', {
                'identifiers': [{'type': 'dns', 'value': name}]}), 400, 'rejectedIdentifier')
        _, order = client.order('example.org')
        for names, options in ((('www.example.org',), {}),
                               (('example.org', 'www.example.org'), {}),
                               (('example.org',), {'key': os.path.basename(client.key)}),
                               (('example.org',), {'harm': spoiled}),
                               (('example.org',), {'harm': lambda csr: csr[:-1]})):
            self.assert_problem(client.finalize(order, names, **options), 400, 'badCSR')
        self.assertEqual(client.finalize(order, ['example.org'])[2]['status'], 'valid')
        self.assert_problem(client.finalize(order, ['example.org']), 403, 'orderNotReady')
        other = Client(ca, self.folder, 'ES384')
        self.addCleanup(other.connection.close)
        other.register()
        self.assert_problem(other.post(order['authorizations'][0], ''), 403, 'unauthorized')

    def test_failed_challenge(self):
        ca, client = self.start()
        client.thumbprint = 'another'
        _, order = client.order('example.org')
        self.assertEqual(order['status'], 'invalid')
        _, _, authz = client.post(order['authorizations'][0], '')
        self.assertEqual([(c['type'], c['status']) for c in authz['challenges']],
                         [('http-01', 'invalid')])
        self.assertIn('another', authz['challenges'][0]['error']['detail'])
        ca.http_port = 1
        _, order = client.order('example.org')
        _, _, authz = client.post(order['authorizations'][0], '')
        self.assertIn('connection', authz['challenges'][0]['error']['type'])


class Faults(FakeCATest):

    def directory(self):
        return self.client.request('GET', self.ca.directory_url)

    def fault(self, *args, **options):
        """Order a fault at the next directory request."""
        self.ca.fault('directory', *args, **options)

    def setUp(self):
        super().setUp()
        self.ca, self.client = self.start(register=False)

    def test_which_requests(self):
        self.fault('status', status=503, nth=2, times=2)
        self.ca.fault('*', 'headers', headers={'X-All': '1'}, times=None)
        answers = [self.directory() for _ in range(5)]
        self.assertEqual([answer[0] for answer in answers], [200, 503, 503, 200, 200])
        self.assertEqual({answer[1]['X-All'] for answer in answers}, {'1'})
        self.assertEqual([(r.kind, r.method, r.path, r.status) for r in self.ca.requests[:2]],
                         [('directory', 'GET', '/directory', 200),
                          ('directory', 'GET', '/directory', 503)])
        self.ca.clear()
        self.assertEqual(self.ca.requests, [])
        with self.assertRaises(ValueError):
            self.fault('misspelt')

    def test_answers_instead(self):
        self.fault('status', status=429, body=b'slow down', headers={'Retry-After': '9'})
        status, headers, body = self.directory()
        self.assertEqual((status, headers['Retry-After'], body), (429, '9', b'slow down'))
        self.fault('redirect', location='https://example.org/')
        self.assertEqual(self.directory()[1]['Location'], 'https://example.org/')
        self.fault('http_error_html')
        self.assertEqual(self.directory()[1]['Content-Type'], 'text/html')
        self.ca.fault('account', 'problem', status=403, type='rateLimited', detail='no',
                      subproblems=[{'detail': 'more'}], headers={'Retry-After': '8'})
        status, headers, problem = self.client.post(self.ca.url + '/new-account', {})
        self.assertEqual((status, headers['Retry-After'], problem['subproblems']),
                         (403, '8', [{'detail': 'more'}]))
        self.assertEqual(problem['type'], 'urn:ietf:params:acme:error:rateLimited')
        self.ca.fault('account', 'bad_nonce')
        answer = self.client.post(self.ca.url + '/new-account', {'termsOfServiceAgreed': True})
        self.assert_problem(answer, 400, 'badNonce')
        self.assertEqual(self.ca.accounts, [])
        self.client.register()
        order = {'identifiers': [{'type': 'dns', 'value': 'example.org'}]}
        first = self.client.post(self.ca.url + '/new-order', order)
        self.ca.fault('order', 'repeat')
        again = self.client.post(self.ca.url + '/new-order', order)
        self.assertEqual((again[1]['Location'], again[2]), (first[1]['Location'], first[2]))
        self.assertEqual(len(self.ca.orders), 1)

    def test_answers_altered(self):
        self.fault('body', body=b'nonsense')
        self.fault('headers', headers={'Content-Type': None, 'Date': 'never'})
        status, headers, body = self.directory()
        self.assertEqual((headers['Content-Type'], headers['Date'], body),
                         (None, 'never', b'nonsense'))
        self.fault('edit', edit=lambda directory: directory.pop('newNonce') and None)
        self.assertNotIn('newNonce', json.loads(self.directory()[2]))
        self.fault('edit', edit=lambda directory: {})
        self.assertEqual(self.directory()[2], b'{}')
        self.fault('edit_text', edit=str.upper)
        self.assertIn(b'NEWNONCE', self.directory()[2])

    def test_connections(self):
        client = self.client
        self.directory()
        for what in 'drop', 'cut':
            self.fault(what)
            with self.assertRaises((http.client.RemoteDisconnected, http.client.IncompleteRead)):
                self.directory()
            client.connection.close()
        self.assertIsNone(self.ca.requests[1].status)
        start = time.monotonic()
        self.fault('delay', seconds=0.1)
        self.directory()
        self.assertGreater(time.monotonic() - start, 0.1)
        start = time.monotonic()
        self.fault('dribble', seconds=0.001)
        size = len(self.directory()[2])
        self.assertGreater(time.monotonic() - start, size * 0.001)
        self.fault('close')
        self.assertEqual(self.directory()[0], 200)
        with self.assertRaises(ConnectionError):
            self.directory()
        client.connection.close()
        self.fault('endless')
        client.connection.request('GET', '/directory', headers={'User-Agent': 'test'})
        answer = client.connection.getresponse()
        self.assertEqual(len(answer.read(300000)), 300000)
        answer.close()

    def test_nothing_is_left_behind(self):
        before = set(threading.enumerate())
        with FakeCA() as ca, socket.create_connection(ca.server.server_address):
            ca.fault('directory', 'delay', seconds=60)
            client = Client(ca, self.folder)
            client.connection.request('GET', '/directory', headers={'User-Agent': 'test'})
            wait_for(lambda: ca.requests, 5, 'request')
            start = time.monotonic()
        self.assertLess(time.monotonic() - start, 2)
        self.assertEqual(set(threading.enumerate()), before)
        client.connection.close()


class ByHand(unittest.TestCase):

    def test_command(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        process = subprocess.Popen(
            [sys.executable, fake_ca.__file__, '--dir', folder.name, '--validity', '12h'],
            stdout=subprocess.PIPE, universal_newlines=True)
        for cleanup in process.stdout.close, process.wait, process.kill:    # the last one first
            self.addCleanup(cleanup)
        url, bundle = (process.stdout.readline().split()[2] for _ in range(2))
        self.assertEqual(bundle, os.path.join(folder.name, 'root.pem'))
        context = ssl.create_default_context(cafile=bundle)
        request = urllib.request.Request(url, headers={'User-Agent': 'test'})
        with urllib.request.urlopen(request, context=context, timeout=10) as answer:
            self.assertIn('newOrder', json.load(answer))
        process.terminate()
        self.assertEqual(process.wait(10), 0)


if __name__ == '__main__':
    unittest.main()
