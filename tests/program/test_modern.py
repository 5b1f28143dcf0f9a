"""What CAs offer in 2026, as far as Pebble cannot spoil it: proofs by DNS, renewal information,
persistent records of draft -02. (Profiles, chains, bindings, revocation, key changes, addresses:
tests/lab/pebble.py.)"""
import json
import os
import re
import signal
import time
import unittest

from tests.world.case import Case as AnyCase
from tests.world.fake_dns import FakeDNS, read_zone
from tests.world.line import CERTCHANGE, DAY, HOUR
from tests.world.support import PATIENCE, cert_names, read, wait_for, write

ZONE = '''example.org 60 SOA ns.example.org hostmaster.example.org 1 3600 600 86400 60
example.org 60 NS ns.example.org
'''
HOOK = '''#!/bin/sh
echo "$@" "$HOOK $CONFIG $LIVE_CRT" >> {0}/calls
[ ! -e {0}/fails-$1 ] || exit 1
case $1 in
deploy_challenge) echo "_acme-challenge.$2 60 TXT $4" >> {0}/zone ;;
clean_challenge) grep -v -e "$4" {0}/zone > {0}/zone.tmp; mv {0}/zone.tmp {0}/zone ;;
esac
[ ! -e {0}/hangs-$1 ] || sleep 1000
'''


class Case(AnyCase):
    def use(self, **options):
        """A line with a hook as those of dehydrated, and a zone's server."""
        line = super().use(**options)
        write(line.path('zone'), '')
        self.own = FakeDNS(lambda: ZONE + read(line.path('zone')).decode(), ad=True,
                           aa=True).__enter__()
        self.addCleanup(self.own.__exit__)
        write(line.path('challenge-hook'), HOOK.format(line.folder.name), 0o755)
        line.set(challenge='dns-01', challenge_hook=line.path('challenge-hook'), challenge_dir=None,
                 dns_servers=self.own.address, dns_resolver=self.own.address,
                 propagation_seconds=20)
        self.ca.txt = lambda name: [words[0] for owner, kind, _, words in read_zone(
            read(line.path('zone')).decode()) if (owner, kind) == (name, 'TXT')]
        return line

    def records(self):
        return read(self.line.path('zone')).decode()

    def calls(self):
        """[(operation, name, token, value)] of the hook."""
        with open(self.line.path('calls')) as file:
            return [tuple(row.split()[:4]) for row in file]

    def good(self):
        """The files fit, and no record is left."""
        self.assertEqual(self.records(), '')
        self.assertEqual(set(cert_names(self.line.crt())),
                         set(self.line.options['domains'].split()))


class Unused(Case):
    def test_a_challenge_dir_that_nothing_is_written_to(self):
        """It need not be there."""
        line = self.settled(challenge='stateless')
        os.rmdir(line.path('challenges'))
        line.run('cron', check=0)
        self.silent()


class Dns(Case):
    def test_a_name_and_its_wildcard(self):
        """Both values are at one name, and both are there when the CA looks."""
        line = self.use(domains='example.org *.example.org')
        line.run('init', check=0)
        self.good()
        calls = self.calls()
        self.assertEqual([call[:2] for call in calls], [('deploy_challenge', 'example.org')] * 2 + [
            ('clean_challenge', 'example.org')] * 2)
        self.assertEqual(calls[0][1:], calls[2][1:])
        tokens = {challenge.token for order in self.ca.orders for authz in order.authorizations
                  for challenge in authz.challenges if challenge.type == 'dns-01'}
        self.assertEqual({call[2] for call in calls}, tokens)
        with open(line.path('calls')) as file:
            self.assertIn('challenge-hook %s %s' % (line.config, line.crt()), file.read())
        self.silent()

    def test_without_k_too(self):
        """It deploys nothing, so no hook that does is run."""
        line = self.use()
        line.hook(CERTCHANGE)
        line.run('init', check=0)
        self.assertEqual(line.log(), [])
        self.good()

    def test_the_ca_is_told_when_all_servers_have_it(self):
        line, late = self.use(), []
        second = FakeDNS(lambda: ZONE + (self.records() if len(late) > 2 else late.append(1) or ''),
                         aa=True).__enter__()
        self.addCleanup(second.__exit__)
        line.set(dns_servers='%s %s' % (self.own.address, second.address))
        line.run('init', check=0)
        self.assertEqual(len(late), 3)
        self.good()

    def test_a_server_that_never_gets_it(self):
        """It is said where what is missing, and the CA is told all the same."""
        line = self.use()
        second = FakeDNS(ZONE, aa=True).__enter__()
        self.addCleanup(second.__exit__)
        line.set(dns_servers='%s %s' % (self.own.address, second.address), propagation_seconds=1)
        done = line.run('init', check=0)
        self.assertRegex(done.stderr, r'warning: after 1 seconds.*_acme-challenge.example.org: %s '
                         'shows no TXT record' % re.escape(second.address))
        self.good()

    def test_an_alias(self):
        """The hook writes where the alias leads to."""
        line = self.use()
        hook = HOOK.format(line.folder.name).replace('"_acme-challenge.$2', '"proofs.example.org')
        write(line.path('challenge-hook'), hook, 0o755)
        zone = '_acme-challenge.example.org 60 CNAME proofs.example.org\n'
        self.own.records = lambda: ZONE + zone + self.records()
        real = self.ca.txt
        self.ca.txt = lambda name: real('proofs.example.org')
        self.assertEqual(line.run('init', check=0).stderr, '')
        self.good()

    def test_a_hook_that_fails(self):
        line = self.use(domains='example.org www.example.org')
        write(line.path('fails-deploy_challenge'), '')
        done = line.run('init', check=1)
        self.assertIn('challenge-hook', done.stderr)
        self.assertEqual(self.calls()[-1][0], 'clean_challenge')
        self.assertNotIn('challenge', [request.kind for request in self.ca.requests])
        os.unlink(line.path('fails-deploy_challenge'))
        write(line.path('fails-clean_challenge'), '')
        for _ in range(2):      # what the first could not remove is not forgotten by the second
            done = line.run('renew', check=0)
            self.assertIn('challenge-hook', done.stderr)
        os.unlink(line.path('fails-clean_challenge'))
        line.run('cron', check=0)       # again, until it is done
        self.assertEqual(self.calls()[-1][0], 'clean_challenge')
        self.good()
        self.silent()

    def test_a_validation_that_fails(self):
        line = self.use()
        self.ca.txt = lambda name: ['nothing']
        self.assertIn('no such TXT record', line.run('init', check=1).stderr)
        self.assertEqual(self.records(), '')

    def test_a_signal_and_a_kill(self):
        for number in signal.SIGTERM, signal.SIGKILL:
            line = self.use()
            self.ca.validation_delay = 600
            self.ca.clear()
            run = line.start('init')
            wait_for(lambda: any(one.kind == 'challenge' for one in self.ca.requests), PATIENCE,
                     'a challenge')
            self.assertIn('TXT', self.records())
            run.send_signal(number)
            run.communicate(timeout=PATIENCE)
            self.ca.validation_delay = 0
            self.assertEqual(self.records() == '', number == signal.SIGTERM)
            line.run('init', check=0)
            self.good()

    def test_a_hook_that_cannot_be_used(self):
        line = self.use()
        os.chmod(line.path('challenge-hook'), 0o644)
        self.refused('init', parts=('challenge-hook: ', 'chmod'))
        line.set(challenge_hook=None)
        self.refused('init', status=2, parts=('challenge-hook', ))

    def test_what_only_dns_can_prove(self):
        line = self.use(domains='*.example.org')
        line.set(challenge='http-01', challenge_dir=line.path('challenges'))
        self.refused('init', status=2, parts=('domains', '*.example.org', 'dns-01'))
        line.set(domains='192.0.2.1', challenge='dns-01')
        self.refused('init', status=2, parts=('domains', '192.0.2.1', 'http-01'))

    def test_challenges_that_make_no_sense(self):
        for name, value in (('token', 'x'), ('token', 7), ('token', None), ('type', 7),
                            ('url', 'http://example.org')):
            line = self.use()
            self.ca.fault('authz', 'edit', edit=lambda data, name=name, value=value: [
                one.update({name: value}) for one in data['challenges']] and None)
            done = line.run('init', check=1)
            self.assertEqual(len(done.stderr.splitlines()), 1, done.stderr)
            self.assertEqual(self.records(), '')
            line.run('renew', check=0)
            self.good()


class Persistent(Case):
    """Draft -02: the account is named by a hash."""

    def use(self, **options):
        line = super().use(**options)
        self.ca.meta = {'issuerDomainNames': ['ca.example'],
                        'accountHashPrefix': 'https://ca.example/hash/'}
        self.ca.issuers = ['ca.example']
        line.set(challenge='dns-persist-01', challenge_hook=None)
        self.own.records = lambda: ZONE
        self.ca.txt = self.shown
        self.shown_texts = {}
        return line

    def shown(self, name):
        return self.shown_texts.get(name, [])

    def publish(self, owner, text):
        """Answer with this TXT record; the zone's server, whose lines are split at spaces, without
        them."""
        self.shown_texts[owner] = [text]
        self.own.records = lambda: ZONE + '%s 60 TXT %s\n' % (owner, text.replace(' ', ''))

    def test_the_records_that_account_tells(self):
        line = self.use(domains='example.org *.example.org')
        told = line.run('account', check=0).stdout
        (owner, text), = re.findall(r'(?m)^(\S+)\. \d+ IN TXT "(.*)"$', told)
        self.assertEqual(owner, '_validation-persist.example.org')
        self.publish(owner, text)
        line.run('init', check=0)
        self.assertEqual(set(cert_names(line.crt())), {'example.org', '*.example.org'})
        self.assertEqual(len(self.ca.accounts), 1)
        self.silent()
        # Another account's, or without the wildcard
        for old, new in ('sha-256/', 'sha-256/x'), ('; policy=wildcard', ''):
            self.publish(owner, text.replace(old, new))
            self.assertIn('publish first', line.run('renew', check=1).stderr)
        self.assertEqual(len(self.orders()), 1)

    def test_nothing_is_ordered_before_it_is_there(self):
        line = self.use(domains='example.org *.example.org')
        done = line.run('init', check=1)
        self.assertRegex(done.stderr, r'_validation-persist.example.org. \d+ IN TXT "ca.example; '
                         'accounturi=https://ca.example/hash/sha-256/')
        self.assertEqual(self.orders(), [])

    def test_the_record_of_the_draft(self):
        """Its own test vector."""
        import letsencrypt_tiny as program

        class Account:
            account = 'https://ca.example/acct/123'

            class key:
                thumbprint = 'NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs'

            @staticmethod
            def meta():
                return {'accountHashPrefix': 'https://ca.example/account-hash/'}

        self.assertEqual(program.persist_uris(Account, '*.example.com'), [
            'https://ca.example/account-hash/sha-256/5SQm7n6tPh2-PlLbCKGnViTXX5z19SCN4cPGQHSk-kw',
            'https://ca.example/account-hash/sha-256/NpDnSwUthQK8zCgFdefYxAdAVPnygMLbs9US6oO-5ug'])

    def test_which_records_count(self):
        import letsencrypt_tiny as program
        uri, now = 'https://ca.example/acct/1', time.time()
        for text, plain, wildcard in (
                ('ca.example; accounturi=%s', True, False),
                ('ca.example;accounturi=%s;policy=wildcard', True, True),
                ('CA.example.; AccountURI=%s; Policy=WILDCARD; more=x', True, True),
                ('ca.example; accounturi=%%s; persistUntil=%d' % (now + 60), True, False),
                ('ca.example; accounturi=%%s; persistUntil=%d' % (now - 60), False, False),
                ('ca.example; accounturi=%s; persistUntil=soon', False, False),
                ('other.example; accounturi=%s', False, False),
                ('ca.example; accounturi=%s/2', False, False), ('ca.example', False, False),
                ('', False, False), (';;=;', False, False)):
            text = text.replace('%s', uri)
            self.assertEqual([program.persists(text, ['ca.example'], [uri], some)
                              for some in (False, True)], [plain, wildcard], text)

    def test_challenges_without_issuers(self):
        line = self.use()
        self.ca.meta = {}
        for issuers in (), ['x'] * 11, ['x', 7], 'ca.example':
            self.ca.issuers = issuers
            done = line.run('renew' if os.path.exists(line.key()) else 'init', check=1)
            self.assertIn('no issuers', done.stderr)


class RenewalInformation(AnyCase):
    def use(self, **options):
        line = super().use(**options)
        self.ca.clock_offset = 0
        self.suggest(50 * DAY, 51 * DAY)
        return line

    def suggest(self, begin, end, **more):
        """Let the CA want a renewal between these seconds from now."""
        start, end = [time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime(time.time() + at))
                      for at in (begin, end)]
        self.ca.ari = {'suggestedWindow': {'start': start, 'end': end}, **more}

    def asked(self):
        return len([request for request in self.ca.requests if request.kind == 'renewal'])

    def test_it_is_due_when_the_ca_wants(self):
        line = self.use()
        line.run('init', check=0)
        self.assertEqual(self.asked(), 1)
        told = re.search(r"the CA wants 'live' renewed (\S+) \d\d:\d\d UTC",
                         line.run('status', check=0).stdout)[1]
        self.assertIn(told, [time.strftime('%Y-%m-%d', time.gmtime(time.time() + days * DAY))
                             for days in (50, 51)])
        for days, orders in (48, 1), (52, 2):
            line.run('cron', check=0, after=days * DAY)
            self.assertEqual(len(self.orders()), orders)
        self.good()

    def test_the_order_says_what_it_replaces(self):
        line = self.use()
        line.run('init', check=0)
        line.run('renew', check=0)
        self.assertEqual([bool(order.replaces) for order in self.ca.orders], [False, True])
        self.assertRegex(self.ca.orders[1].replaces, r'\A[\w-]+\.[\w-]+\Z')
        self.assertIn('/renewal/' + self.ca.orders[1].replaces,
                      [request.path for request in self.ca.requests])

    def test_the_ca_does_not_like_what_is_replaced(self):
        for status, kind in (409, 'alreadyReplaced'), (404, 'malformed'), (500, 'serverInternal'):
            line = self.use()
            line.run('init', check=0)
            self.ca.clear()
            self.ca.fault('order', 'problem', status=status, type=kind)
            line.run('renew', check=0)
            payloads = [request.payload for request in self.ca.requests if request.kind == 'order']
            self.assertEqual(['replaces' in (payload or {'replaces': 1}) for payload in payloads],
                             [True, False])

    def test_it_is_asked_now_and_then(self):
        """As often as it says, but at most hourly and at least daily."""
        line = self.use()
        for wait, quiet, loud in ((None, 5.9, 6.1), ('60', .9, 1.1), ('9999999', 23, 25)):
            self.ca.fault('renewal', 'headers', times=None, headers={'Retry-After': wait})
            self.ca.clock_offset = 0
            line.run('init' if wait is None else 'renew', check=0)
            before = self.asked()
            self.silent(after=quiet * HOUR)
            line.run('cron', check=0, after=loud * HOUR)
            self.assertEqual(self.asked(), before + 1)
            del self.ca.faults[:]

    def test_a_window_that_moves(self):
        line = self.use()
        line.run('init', check=0)
        self.suggest(-2 * DAY, -DAY, explanationURL='https://ca.example/why')
        done = line.run('cron', check=0, after=DAY)
        self.assertIn('https://ca.example/why', done.stdout)
        self.assertEqual(len(self.orders()), 2)
        self.good()

    def test_the_time_stays_while_the_window_does(self):
        line = self.use()
        line.run('init', check=0)
        told = [re.search('the CA wants.*', line.run('status', check=0).stdout)[0]]
        for days in 1, 2:
            line.run('cron', check=0, after=days * DAY)
            told.append(re.search('the CA wants.*', line.run('status', check=0).stdout)[0])
        self.assertEqual(len(set(told)), 1)

    def test_a_ca_that_is_never_content(self):
        line = self.use()
        self.suggest(-2 * DAY, -DAY)
        line.run('init', check=0)
        self.assertEqual(len(self.orders()), 1)

    def test_it_delays_nothing(self):
        """Not a late window, nor an answer that is none."""
        for answer in ({'suggestedWindow': {'start': '2090-01-01T00:00:00Z',
                                            'end': '2090-01-02T00:00:00Z'}},
                       {'suggestedWindow': {'start': '2026-01-03T00:00:00Z',
                                            'end': '2026-01-02T00:00:00Z'}},
                       {}, {'suggestedWindow': []}, {'suggestedWindow': 7},
                       {'suggestedWindow': {'start': 'soon', 'end': [1]}},
                       {'suggestedWindow': {'start': '9999-99-99T00:00:00Z', 'end': ''}}):
            with self.subTest(answer):
                line = self.use()
                self.ca.ari = lambda name, answer=answer: answer
                line.run('init', check=0)
                before = len(self.orders())
                self.assertEqual(line.run('cron', check=0, after=25 * HOUR).stdout, '')
                self.assertEqual(len(self.orders()), before)
                line.run('cron', check=0, after=61 * DAY)
                self.assertEqual(len(self.orders()), before + 1)
        line = self.use()
        line.run('init', check=0)
        for fault in ('status', {'status': 500}), ('drop', {}):
            self.ca.fault('renewal', fault[0], times=None, **fault[1])
            self.assertEqual(line.run('cron', check=0, after=30 * HOUR).stderr, '')

    def test_it_ends_when_the_ca_ends_it(self):
        line = self.use()
        line.run('init', check=0)
        self.ca.ari = None
        self.assertEqual(line.run('cron', check=0, after=DAY).stdout, '')
        self.ca.clear()
        line.run('cron', check=0, after=3 * DAY)
        self.assertEqual(self.ca.requests, [])

    def test_dates(self):
        import acme_tiny
        for text, seconds in (('1970-01-01T00:00:00Z', 0), ('1970-01-01t01:00:00.5+01:00', .5),
                              ('2026-11-26T06:32:00.123456789Z', 1795674720.123456789)):
            self.assertAlmostEqual(acme_tiny.rfc3339(text), seconds, 3)
        for text in '', 'now', '1970-01-01', '1970-13-01T00:00:00Z', '1970-01-01T00:00:00':
            self.assertRaises(ValueError, acme_tiny.rfc3339, text)

    def test_links(self):
        import acme_tiny
        import email.message
        headers = email.message.Message()
        for text in ('<https://a/1>;rel="alternate", <https://a/2>; rel=alternate',
                     '<https://a/dir>;rel="index"', '<https://a/3>; title="x, y"; REL="Alternate"',
                     '<>', '<https://a/4>;rel="up";x="alternate"', 'garbage;rel="alternate"'):
            headers['Link'] = text
        self.assertEqual(acme_tiny.alternates(headers), ['https://a/1', 'https://a/2',
                                                         'https://a/3'])


class Lines(AnyCase):
    def beside(self, first, name):
        """Another line with the same account and web server."""
        return self.use(web=False, domains=name, **{option: first.options[option] for option in (
            'account_key', 'challenge_dir')})

    def test_they_share_a_connection_and_an_account(self):
        first, options = self.use(), []
        for name in 'a', 'b', 'c':
            line = self.beside(first, name + '.example.org')
            options += ['-c', line.config]
        connections = self.ca.connections
        first.run('init', *options, check=0)
        self.assertEqual(self.ca.connections - connections, 1)
        kinds = [request.kind for request in self.ca.requests]
        self.assertEqual([kinds.count(kind) for kind in (
            'directory', 'nonce', 'account', 'order')], [1, 1, 1, 4])

    def test_one_that_fails_does_not_stop_the_others(self):
        first = self.use()
        second = self.beside(first, 'b.example.org')
        self.ca.fault('order', 'drop', times=3)
        first.run('init', '-c', second.config, check=1)
        self.assertFalse(os.path.exists(first.crt()))
        self.assertTrue(os.path.exists(second.crt()))


class Words(AnyCase):
    def test_account_before_init(self):
        line = self.use()
        done = line.run('account', check=0)
        self.assertEqual(len(self.ca.accounts), 1)
        self.assertIn(self.ca.accounts[0].thumbprint, done.stdout)
        self.assertFalse(os.path.exists(line.path('keys')))
        line.run('init', check=0)
        self.assertEqual(len(self.ca.accounts), 1)

    def test_another_key_for_the_account(self):
        """It is on disk before the CA is told, and whoever holds then is found out."""
        line = self.use()
        line.run('init', check=0)
        old = read(line.path('account.key'))
        for what, changed in (('drop', True), ('status', False), ('problem', False)):
            self.ca.fault('key-change', what, times=3,
                          **({} if what == 'drop' else {'status': 500}))
            if what == 'drop':      # it does it, and the answer is lost
                self.ca.faults[:] = []
                self.ca.fault('key-change', 'body', body=b'{}', times=None)
                self.ca.fault('key-change', 'cut', times=None)
            line.run('account', '--new-key')
            del self.ca.faults[:]
            line.run('renew', check=0)
            self.assertFalse(os.path.exists(line.path('account.key.new')))
            self.assertEqual(read(line.path('account.key')) != old, changed)
            self.assertEqual(len(self.ca.accounts), 1)
            old = read(line.path('account.key'))

    def test_a_directory_that_says_nonsense_of_its_ca(self):
        """What is optional costs nothing; what is asked for is told in one line."""
        line = self.settled()
        line.set(profile='x')
        for meta in ({'profiles': ['x']}, {'profiles': 7}, {'externalAccountRequired': 'yes'},
                     {'caaIdentities': {'a': 1}}, {'caaIdentities': [7, None, 'ca.example']},
                     {'issuerDomainNames': 'ca.example'}, {'termsOfService': [1]},
                     {'accountHashPrefix': 7}):
            with self.subTest(meta):
                self.ca.meta = meta
                for command in 'account', 'renew':
                    done = line.run(command)
                    self.assertEqual(done.returncode, int(command == 'renew'), done.stderr)
                    self.assertEqual(len(done.stderr.splitlines()), done.returncode)
        for meta in None, 7, [], 'x':
            self.ca.fault('directory', 'edit', times=None,
                          edit=lambda data, meta=meta: data.update(meta=meta))
            line.run('account', check=0)
            self.assertIn('x', line.run('renew', check=1).stderr)
            del self.ca.faults[:]
        self.ca.fault('directory', 'edit', edit=lambda data: data.pop('revokeCert') and None)
        self.assertIn('revokeCert', line.run('revoke', check=1).stderr)

    def test_a_ca_adds_no_line_to_what_is_told(self):
        """Neither to a terminal nor to a zone file that is made of it."""
        line = self.use()
        line.run('account', check=0)
        plain = len(line.run('account', check=0).stdout.splitlines())
        self.ca.meta = {'termsOfService': 'x\nwww IN A 192.0.2.1', 'caaIdentities': [
            'ca.example\nwww IN A 192.0.2.1', '\x1b[2Jca.example\r']}
        done = line.run('account', check=0)
        self.assertEqual(len(done.stdout.splitlines()), plain + 1)  # two CAA records, not a word
        self.assertTrue(done.stdout.replace('\n', '').isprintable())

    def test_answers_to_a_revocation(self):
        line = self.settled()
        for what, args in (('status', {'status': 500}), ('drop', {}),
                           ('status', {'status': 403, 'body': b'{}'}),
                           ('problem', {'status': 400, 'type': 'badRevocationReason'})):
            self.ca.fault('revoke', what, times=3, **args)
            done = line.run('revoke', check=1)
            self.assertEqual((done.stdout, len(done.stderr.splitlines())), ('', 1))
            del self.ca.faults[:]

    def test_revoking_what_is_no_certificate(self):
        line = self.settled()
        for path in line.key(), line.path('nothing'), line.folder.name:
            self.refused('revoke', path, parts=(path,))
        self.refused('revoke', '--reason', 'boredom', status=2, parts=('superseded',))

    def test_a_profile_of_a_ca_without_profiles(self):
        line = self.settled()
        line.set(profile='shortlived')
        self.assertIn('shortlived', line.run('renew', check=1).stderr)
        self.assertEqual(self.orders(), [])
        self.ca.meta = {'profiles': {'classic': 'x', 'tlsserver': json.dumps([1])}}
        self.assertIn('classic, tlsserver', line.run('renew', check=1).stderr)

    def test_a_ca_that_says_too_late_that_it_wants_a_binding(self):
        line = self.use()
        self.ca.fault('account', 'problem', status=403, type='externalAccountRequired',
                      detail='who are you')
        done = line.run('init', check=1)
        for word in 'eab-kid', 'eab-hmac-key', 'who are you':
            self.assertIn(word, done.stderr)

    def test_a_key_for_bindings(self):
        line = self.settled()
        line.set(eab_kid='kid')
        self.refused('renew', status=2, parts=('eab-kid', 'eab-hmac-key'))
        line.set(eab_hmac_key=write(line.path('mac'), 'AAAA', 0o644))
        self.refused('renew', parts=('eab-hmac-key: ', line.path('mac')))
        os.chmod(line.path('mac'), 0o600)
        line.run('renew', check=0)
        write(line.path('mac'), 'no base64url!', 0o600)
        self.assertIn('base64url', line.run('renew', check=1).stderr)


if __name__ == '__main__':
    unittest.main()
