"""What a new user asks first, and what monitoring asks for years: check, init's words, -v,
status --json."""
import json
import os
import pty
import re
import time
import unittest

from tests.world.case import Case as AnyCase, plant, traces
from tests.world.fake_dns import FakeDNS
from tests.world.line import CERTCHANGE, DAY
from tests.world.support import cert_names, openssl, read, spki, write

# Names lead to these addresses, and port 80 of them to the line's web server, or to nobody.
HOSTS = '''
import errno, os, socket
real, connect = socket.getaddrinfo, socket.socket.connect
hosts, web = %r, %d
def resolve(host, port, *args, **options):
    if host in hosts and not hosts[host]:
        raise socket.gaierror(-2, "Name or service not known")
    found = [real(address, port, *args, **options)[0] for address in hosts.get(host, [host])]
    return found
def reach(sock, address):
    if address[1] == 80:
        if not address[0].startswith("127."):
            raise OSError(errno.ENETUNREACH, os.strerror(errno.ENETUNREACH))
        address = "127.0.0.1", web
    connect(sock, address)
socket.getaddrinfo, socket.socket.connect = resolve, reach
'''
ZONE = '''example.org 60 SOA ns.example.org hostmaster.example.org 1 3600 600 86400 60
example.org 60 NS ns.example.org
example.org 60 MX 10 mx.example.org
mx.example.org 60 A 127.0.0.1
'''


class Check(AnyCase):
    """It tells all that is wrong, and changes nothing."""

    def use(self, **options):
        line = super().use(**{'domains': 'example.org www.example.org', **options})
        line.hook(CERTCHANGE)
        return line

    def check(self, status, *parts, hosts=None):
        """What `check` says (lines), after an exit status of this kind, with these parts in it."""
        known = {'example.org': ['127.0.0.1'], 'www.example.org': ['127.0.0.1'], **(hosts or {})}
        before = traces(self.line.folder.name)
        done = self.line.run('check', check=status, code=HOSTS % (known, self.line.web.port))
        self.assertEqual(done.stderr, '')
        after, folder = traces(self.line.folder.name), self.line.path('challenges')
        self.assertEqual(*[{path: found[path] for path in found if path.rstrip('/') != folder}
                           for found in (before, after)])
        for part in parts:
            self.assertIn(part, done.stdout)
        return done.stdout.splitlines()

    def test_before_init(self):
        """Nothing is there, and nothing is made; the CA's terms are told, and the CA asked for
        nothing else."""
        line = self.use()
        said = self.check(0, 'terms of service', 'Nothing is wrong')
        self.assertEqual(len(said), 2)
        self.assertEqual({one.kind for one in self.ca.requests} - {'directory', 'nonce'}, set())
        self.assertEqual({host for host, _ in line.web.hits}, {'example.org', 'www.example.org'})
        self.assertFalse(os.path.exists(line.path('account.key')))

    def test_after_init(self):
        line = self.use()
        line.run('init', hooks=True, check=0)
        self.check(0, 'Nothing is wrong')

    def test_several_lines(self):
        """Each finding is told with the config that it is about."""
        one, two = self.use(), self.use()
        said = one.run('check', '-c', two.config, check=1).stdout
        first, second = said.split(two.config + ':\n')
        self.assertIn('no address', first)
        self.assertIn('no address', second)
        self.assertTrue(first.startswith(one.config + ':\n'))

    def test_port_80(self):
        """Each address counts, and each finding names it, and what to do."""
        line = self.use()
        said = self.check(1, hosts={'example.org': ['127.0.0.1', '::1', '192.0.2.1'],
                                    'www.example.org': []})
        found = [row for row in said if 'port 80' in row]
        self.assertEqual(len(found), 3, said)
        for row, part in zip(found, ('::1: ', '192.0.2.1: ', 'no address')):
            self.assertIn(part, row)
            self.assertIn(line.path('challenges'), row)
        line.web.find = lambda path: b'welcome to nginx'
        self.check(1, 'another text')
        line.web.find = lambda path: None
        self.check(1, '404')

    def test_everything_is_told_at_once(self):
        line = self.use()
        os.chmod(line.path(CERTCHANGE), 0o644)
        line.set(challenge_dir=line.path('nowhere', 'challenges'), contact='a@example.org')
        self.ca.clock_offset = 3 * DAY
        write(line.path('keys'), 'a file')
        said = self.check(1, 'post-certchange: ', 'chmod +x', 'your clock is 3 days behind',
                          'keys: ', 'nowhere')
        self.assertGreaterEqual(len(said), 5)

    def test_the_ca_cannot_be_asked(self):
        line = self.use()
        line.set(directory_url='https://127.0.0.1:1/directory')
        self.check(1, 'https://127.0.0.1:1/directory', 'refused')

    def test_what_the_directory_tells(self):
        line = self.use(profile='shortlived')
        self.check(1, 'no profile shortlived')
        line.set(profile=None)
        self.ca.meta['externalAccountRequired'] = True
        self.check(1, 'eab-kid')

    def test_dns_and_mail(self):
        """TLSA records, and hosts of ours that mail goes to, but that tlsa does not name."""
        dns = FakeDNS(lambda: ZONE, ad=True, aa=True).__enter__()
        self.addCleanup(dns.__exit__)
        line = self.use(domains='example.org mx.example.org', staging_hours=24,
                        tlsa='_443._tcp.mx.example.org', dns_resolver=dns.address,
                        dns_servers=dns.address)
        hosts = {'mx.example.org': ['127.0.0.1']}
        self.check(1, 'mail for example.org goes to mx.example.org', '_25._tcp.mx.example.org',
                   hosts=hosts)
        line.set(tlsa='_25._tcp.mx.example.org')
        self.assertEqual(len(self.check(0, 'Nothing is wrong', hosts=hosts)), 2)
        plant(line, self.ca, names=('example.org', 'mx.example.org'))
        self.check(1, 'no TLSA record', hosts=hosts)

    def test_the_sample_is_refused_as_such(self):
        """Who forgot to write names of his own learns that, and nothing is made or asked."""
        for directory in None, 'https://acme-staging-v02.api.letsencrypt.org/directory':
            line = self.use(directory_url=directory)
            for command in 'init', 'renew':
                self.refused(command, status=2, parts=('example.org is only an example',))
            self.assertFalse(os.path.exists(line.path('keys')))


class Words(AnyCase):
    def test_init_tells_that_nothing_will_reload(self):
        done = self.use().run('init', check=0)
        self.assertIn('no post-certchange', done.stdout)
        line = self.use()
        line.hook(CERTCHANGE)
        self.assertNotIn('no post-certchange', line.run('init', check=0, hooks=True).stdout)

    def test_init_tells_what_is_strange_in_adopted_files(self):
        """Once, and whether hooks run or not."""
        line = self.use()
        plant(line, self.ca, chain=False)
        target = line.path('elsewhere')
        os.rename(line.crt(), target)
        os.symlink(target, line.crt())
        os.chmod(line.key(), 0o640)
        said = line.run('init', check=0).stdout
        for part in ('without its chain', 'is a link: who changes %s ' % target,
                     'can be read by its group'):
            self.assertIn(part, said)
        self.assertEqual(line.run('init', check=0).stdout, '')

    def test_init_refuses_an_account_key_that_is_none(self):
        """Not only when it is needed, months later."""
        line = self.use()
        plant(line, self.ca)
        write(line.path('account.key'), '{"kty": "RSA"}', 0o600)
        self.refused('init', parts=('JWK', 'account.key'))

    def test_v_tells_how_long_each_step_took(self):
        self.ca.validation_delay = 1
        told = self.use().run('init', '-v', check=0).stderr.splitlines()
        took = [float(re.search(r'\(([0-9]+\.[0-9]{2}) s\)$', row).group(1)) for row in told]
        self.assertTrue(any(row.startswith('Signing certificate') for row in told), told)
        self.assertGreater(max(took), .9)
        self.assertLess(min(took), .9)

    def test_a_terminal_is_told_what_to_wait_for(self):
        """And nobody else."""
        line = self.use()
        self.assertNotIn('Verifying', line.run('init', check=0).stderr)
        master, slave = pty.openpty()
        self.addCleanup(os.close, master)
        try:
            line.run('renew', check=0, code='import os; os.dup2(os.open(%r, os.O_RDWR), 2)\n' % (
                os.ttyname(slave)))
        finally:
            os.close(slave)
        self.assertRegex(os.read(master, 10000).decode(), r'Verifying example\.org|Signing')


class Status(AnyCase):
    def object(self, status=0, **options):
        done = self.line.run('status', '--json', check=status, **options)
        text, = done.stdout.splitlines()
        return json.loads(text)

    def test_settled(self):
        line = self.settled(hooks=[CERTCHANGE], domains='example.org')
        line.run('renew', hooks=True, check=0)
        found = self.object()
        self.assertEqual((found['config'], found['status'], found['problems'], found['domains']),
                         (line.config, 0, [], ['example.org']))
        self.assertIsNone(found['staging'])
        key, crt = found['live']['key'], found['live']['certificate']
        self.assertEqual((key['path'], key['type'], key['bits'], key['spki_sha256']),
                         (line.key(), 'ec-p256', 256, spki(line.key())))
        self.assertEqual((crt['path'], crt['names'], crt['fits_key']),
                         (line.crt(), cert_names(line.crt()), True))
        said = openssl('x509', '-in', line.crt(), '-noout', '-serial', '-enddate').decode()
        serial, end = re.match('serial=(.*)\nnotAfter=(.*)\n', said).groups()
        self.assertEqual(crt['serial'].upper(), serial)
        self.assertEqual(time.strptime(crt['not_after'], '%Y-%m-%dT%H:%M:%SZ')[:6],
                         time.strptime(end, '%b %d %H:%M:%S %Y %Z')[:6])
        self.assertEqual(found['hooks_owed'], [])
        self.assertIn('is renewed', found['next'][0]['step'])
        self.assertLess(time.strftime('%Y-%m-%dT'), found['next'][0]['when'])

    def test_staged_and_owed(self):
        line = self.settled(staging_hours=48)
        line.hook('post-keychange')
        line.run('renew', '--new-key')
        found = self.object(status=1)
        self.assertEqual(found['problems'], ['overdue: Running post-keychange: it is owed'])
        self.assertEqual(found['staging']['key']['spki_sha256'], spki(line.key('staging')))
        self.assertEqual(found['hooks_owed'], ['post-keychange'])
        self.assertIsNone(found['published'])
        line.run('cron', hooks=True, check=0)
        found = self.object()
        self.assertRegex(found['published'], r'\A[0-9-]{10}T[0-9:]{8}Z\Z')
        self.assertIn('goes live', [step['step'] for step in found['next']][0])

    def test_failure(self):
        line = self.settled()
        self.ca.fault('order', 'problem', status=500, type='serverInternal',
                      detail='no more today')
        line.run('renew', check=1)
        self.assertIn('no more today', self.object()['last_failure']['error'])
        line.set(domains='example.org www.example.org')
        found = self.object(status=1, now=time.time() + 3 * DAY)
        self.assertEqual(found['status'], 1)
        self.assertIn('overdue: ', found['problems'][0])

    def test_what_cannot_be_read(self):
        """An object all the same: who watches learns why."""
        line = self.settled()
        os.unlink(line.key())
        found = self.object(status=1)
        self.assertIn('missing', found['problems'][0])
        self.assertEqual((found['config'], found['status']), (line.config, 1))
        line.set(self_check='perhaps')
        self.assertEqual(self.object(status=2)['status'], 2)

    def test_several_lines(self):
        one, two = self.settled(), self.settled()
        done = one.run('status', '--json', '-c', two.config, check=0)
        self.assertEqual([json.loads(text)['config'] for text in done.stdout.splitlines()],
                         [one.config, two.config])

    def test_no_write_and_no_request(self):
        line = self.settled()
        before = len(self.ca.requests), traces(line.folder.name), read(line.key())
        self.object()
        self.assertEqual((len(self.ca.requests), traces(line.folder.name), read(line.key())),
                         before)


if __name__ == '__main__':
    unittest.main()
