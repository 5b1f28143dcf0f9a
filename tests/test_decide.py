"""decide() as a table: what is there -> the next step. One row, one case."""
import json
import tempfile
import unittest

from letsencrypt_tiny import Crt, Facts, Key, decide, read_config, read_state, renewal_time
from tests.simulation import plain_config as config

HOUR, DAY = 3600, 86400
NOW = 2000000000
CERTCHANGE, KEYCHANGE = 'post-certchange', 'post-keychange'


def the(**values):
    """A dict. (The table has many.)"""
    return values


BOTH = the(post_certchange='/x/c', post_keychange='/x/k')
DANE = dict(BOTH, tlsa=['_25._tcp.mx.example.org'], staging_hours=48.0)
WAIT, CLOCK = ('wait', None), ('clock', None)


def key(name, days=100, kind='ec-p256', bits=256):
    """A key that is so many days old."""
    return Key(spki=name, kind=kind, bits=bits, made=NOW - days * DAY)


def crt(name, left=60, life=90, names=('example.org',), mark=''):
    """A certificate for the key `name`, with so many days left of its life."""
    return Crt(names=tuple(names), not_before=int(NOW + (left - life) * DAY),
               not_after=int(NOW + left * DAY), spki=name, sha256='crt ' + name + mark)


def facts(**given):
    """Facts of a settled line with the key A, and what differs."""
    values = the(live_key=key('A'), live_crt=crt('A'), staging_key=None, staging_crt=None,
                 state={}, asked=frozenset(), force='', hooks=True, skew=0)
    values.update(given)
    return Facts(**values)


def state(live='A', staging=None, done=None, hours=None, **others):
    """The state after both hooks ran for these keys, so many hours ago."""
    known = {'certchange': done or 'crt ' + live, 'keychange': [live, staging]}
    if hours is not None:
        known['published'] = NOW - hours * HOUR
    return dict(known, **others)


def retry(seconds, server=False, **others):
    """The state's note of a failed request: the next one may be made in so many seconds."""
    return {'retry': dict({'count': 2, 'after': NOW + seconds, 'server': server, 'error': 'broke',
                           'names': ['example.org'], 'directory': config().directory_url},
                          **others)}


NEW = the(staging_key=key('B', 0), staging_crt=None)
PAIR = the(staging_key=key('B', 3), staging_crt=crt('B', 88))
OLD = the(live_key=key('A', 400))
DUE = the(live_crt=crt('A', 20))

# what is there, (verb, what), options of the config, facts that differ
ROWS = [
    # -- settled
    ('nothing due', WAIT, {}, {}),
    ('hooks done', WAIT, BOTH, the(state=state())),
    ('names in another order', WAIT, the(domains=['b.example', 'a.example']),
     the(live_crt=crt('A', names=['a.example', 'b.example']))),

    # -- 1. what a crash, a power cut or a person left
    ('staged key is the live one', ('drop', 'key'), {}, the(staging_key=key('A'))),
    ('the same, and it has a certificate', ('drop', 'key'), {},
     the(staging_key=key('A'), staging_crt=crt('A', mark='2'))),
    ('the same, before all else', ('drop', 'key'), BOTH, dict(
        DUE, live_key=key('A', 400), staging_key=key('A'))),
    ('between two renames', ('rename', 'crt'), {},
     the(live_key=key('B'), live_crt=crt('A'), staging_crt=crt('B'))),
    ('between two renames, live.crt lost', ('rename', 'crt'), {},
     the(live_key=key('B'), live_crt=None, staging_crt=crt('B'))),
    ('between two renames, no request allowed', ('rename', 'crt'), {},
     the(live_key=key('B'), live_crt=crt('A'), staging_crt=crt('B'),
          state=retry(DAY, True))),
    ('only the second rename', ('rename', 'key'), {},
     the(live_crt=crt('B'), staging_key=key('B'))),
    ('only the second rename, and a certificate', ('rename', 'key'), {},
     the(live_crt=crt('B'), staging_key=key('B'), staging_crt=crt('B'))),
    ('only the second rename, no request allowed', ('rename', 'key'), BOTH,
     the(live_crt=crt('B'), staging_key=key('B'), state=retry(DAY, True))),
    ('staged certificate without key', ('drop', 'crt'), {}, the(staging_crt=crt('B'))),
    ('a second one for the live key', ('drop', 'crt'), {},
     the(staging_crt=crt('A', mark='2'))),
    ('staged garbage', ('drop', 'crt'), {}, the(staging_crt=Crt((), 0, 0, '', 'x'))),
    ('staged garbage, live garbage', ('drop', 'crt'), {},
     the(live_crt=Crt((), 0, 0, '', 'y'), staging_crt=Crt((), 0, 0, '', 'x'))),
    ('staged garbage, renewal due', ('drop', 'crt'), {}, dict(
        DUE, staging_crt=Crt((), 0, 0, '', 'x'))),

    # -- 2. a certificate for the live key
    ('no certificate', ('request', 'live'), BOTH, the(live_crt=None)),
    ('a certificate for another key', ('request', 'live'), BOTH, the(live_crt=crt('X'))),
    ('no certificate in live.crt', ('request', 'live'), BOTH,
     the(live_crt=Crt((), 0, 0, '', 'x'))),
    ('a name added', ('request', 'live'), the(domains=['example.org', 'b.example']), {}),
    ('a name taken away', ('request', 'live'), {},
     the(live_crt=crt('A', names=['example.org', 'b.example']))),
    ('renewal due', ('request', 'live'), {}, the(live_crt=crt('A', 30))),
    ('renewal due in a second', WAIT, {}, the(live_crt=crt('A', 30 + 1 / DAY))),
    ('expired', ('request', 'live'), {}, the(live_crt=crt('A', -1))),
    ('renewal due, key too old', ('request', 'live'), {}, dict(DUE, **OLD)),
    ('renewal due, hooks owed', ('request', 'live'), BOTH, DUE),
    ('renewal due, a key staged', ('request', 'live'), dict(BOTH, staging_hours=48), dict(
        DUE, **dict(PAIR, state=state('A', 'B', hours=1)))),
    ('renewal due, a staged pair that may go live', ('request', 'live'),
     dict(BOTH, staging_hours=48), dict(DUE, **dict(PAIR, state=state('A', 'B', hours=50)))),
    ('renewal due, a staged key without certificate', ('request', 'live'), {}, dict(DUE, **NEW)),
    ('requested in this run', WAIT, {}, dict(DUE, asked=frozenset('A'))),
    ('requested in this run, and hooks owed', ('hook', CERTCHANGE), BOTH,
     dict(DUE, asked=frozenset('A'))),
    ('slow clock does not stop a renewal', ('request', 'live'), {}, dict(DUE, skew=40 * DAY)),
    ('no certificate, whatever the clock says', ('request', 'live'), {},
     the(live_crt=None, skew=None)),
    ('another name, whatever the clock says', ('request', 'live'), the(domains=['b.example']),
     the(skew=-40 * DAY)),

    # -- 2. after a failure
    ('to be tried later', WAIT, {}, dict(DUE, state=retry(5))),
    ('to be tried now', ('request', 'live'), {}, dict(DUE, state=retry(0))),
    ('failed for other names', ('request', 'live'), {},
     dict(DUE, state=retry(5, names=['b.example']))),
    ('failed at another CA', ('request', 'live'), {},
     dict(DUE, state=retry(5, True, directory='https://other.example/'))),
    ('the server said when, other names', WAIT, {},
     dict(DUE, state=retry(5, True, names=['b.example']))),
    ('the server said when, over', ('request', 'live'), {}, dict(DUE, state=retry(0, True))),
    ('no fitting certificate, no request, so no hooks', WAIT, BOTH,
     the(live_crt=crt('X'), state=retry(5))),
    ('no certificate, no request, so no hooks', WAIT, BOTH, the(live_crt=None, state=retry(5))),
    ('the other steps go on: hooks', ('hook', CERTCHANGE), BOTH, dict(DUE, state=retry(5))),
    ('the other steps go on: a new key', ('stage', ''), {}, dict(
        DUE, state=retry(5), **OLD)),
    ('the other steps go on: going live', ('unstage', ''), dict(BOTH, staging_hours=48), dict(
        DUE, **dict(PAIR, state=dict(state('A', 'B', hours=49), **retry(5))))),

    # -- 3. a certificate for the staged key
    ('staged key without certificate', ('request', 'staging'), BOTH, NEW),
    ('staged key with another certificate', ('request', 'staging'), BOTH,
     dict(PAIR, staging_crt=crt('X'))),
    ('staged key with the live certificate', ('request', 'staging'), BOTH,
     dict(PAIR, staging_crt=crt('A'))),
    ('staged certificate has other names', ('request', 'staging'), {},
     dict(PAIR, staging_crt=crt('B', names=['b.example']))),
    ('staged certificate due', ('request', 'staging'), {}, dict(PAIR, staging_crt=crt('B', 10))),
    ('staged certificate expired', ('request', 'staging'), the(staging_hours=1),
     dict(PAIR, staging_crt=crt('B', -1), state=state('A', 'B', hours=9))),
    ('staged request made in this run', ('hook', CERTCHANGE), BOTH,
     dict(NEW, asked=frozenset('B'))),
    ('live request made in this run', ('request', 'staging'), BOTH,
     dict(NEW, asked=frozenset('A'))),
    ('staged request to be tried later', WAIT, dict(BOTH, staging_hours=48),
     dict(NEW, state=dict(state(), **retry(5)))),
    ('staged key without certificate is not published', ('hook', KEYCHANGE),
     dict(BOTH, staging_hours=48),
     dict(NEW, state=dict(state(), keychange=['A', 'B'], **retry(5)))),

    # -- 4. a new key
    ('key too old', ('stage', ''), {}, OLD),
    ('key just too old', ('stage', ''), {}, the(live_key=key('A', 365))),
    ('key not yet too old', WAIT, {}, the(live_key=key('A', 365 - 1 / DAY))),
    ('fractions of a day', ('stage', ''), the(max_key_age_days=.5), the(live_key=key('A', .51))),
    ('key from the future', WAIT, {}, the(live_key=key('A', -1000))),
    ('key too old, hooks owed', ('stage', ''), BOTH, OLD),
    ('key too old, one staged', WAIT, the(staging_hours=48),
     dict(OLD, **dict(PAIR, state={'published': NOW}))),
    ('key too old, one staged in this run', WAIT, {}, dict(OLD, asked=frozenset(['stage']))),
    ('another kind of key', ('stage', ''), the(key_type='ec-p384'), {}),
    ('RSA instead of P-256', ('stage', ''), the(key_type='rsa'), {}),
    ('P-256 instead of RSA', ('stage', ''), {}, the(live_key=key('A', 1, 'rsa', 4096))),
    ('another length', ('stage', ''), the(key_type='rsa', key_length=4096),
     the(live_key=key('A', 1, 'rsa', 2048))),
    ('a shorter length', ('stage', ''), the(key_type='rsa', key_length=2048),
     the(live_key=key('A', 1, 'rsa', 4096))),
    ('the right length', WAIT, the(key_type='rsa', key_length=4096),
     the(live_key=key('A', 1, 'rsa', 4096))),
    ('any RSA key from 2048 is kept', WAIT, the(key_type='rsa'),
     the(live_key=key('A', 1, 'rsa', 2048))),
    ('or longer', WAIT, the(key_type='rsa'), the(live_key=key('A', 1, 'rsa', 4096))),
    ('but not a shorter one', ('stage', ''), the(key_type='rsa'),
     the(live_key=key('A', 1, 'rsa', 1024))),
    ('a kind that no CA takes', ('stage', ''), {}, the(live_key=key('A', 1, 'another', 0))),

    # -- 5. hooks
    ('certificate changed', ('hook', CERTCHANGE), BOTH, the(state=state(done='crt A0'))),
    ('certificate changed, keys too', ('hook', CERTCHANGE), BOTH, {}),
    ('only then the keys', ('hook', KEYCHANGE), BOTH, the(state={'certchange': 'crt A'})),
    ('another key in DNS', ('hook', KEYCHANGE), BOTH, the(state=state('X', done='crt A'))),
    ('a staged key still in DNS', ('hook', KEYCHANGE), BOTH, the(state=state('A', 'X'))),
    ('a staged pair not yet in DNS', ('hook', KEYCHANGE), dict(BOTH, staging_hours=48),
     dict(PAIR, state=state())),
    ('a staged pair, but the certificate first', ('hook', CERTCHANGE),
     dict(BOTH, staging_hours=48), dict(PAIR, state=state(done='crt A0'))),
    ('only the first hook is there', ('hook', CERTCHANGE), the(post_certchange='/x/c'), {}),
    ('only the first hook is there, done', WAIT, the(post_certchange='/x/c'),
     the(state={'certchange': 'crt A'})),
    ('only the second hook is there', ('hook', KEYCHANGE), the(post_keychange='/x/k'), {}),
    ('a hook configured later is owed', ('hook', KEYCHANGE), BOTH,
     the(state={'certchange': 'crt A'})),
    ('without -k', WAIT, BOTH, the(hooks=False)),
    ('state lost while a key is staged', ('hook', CERTCHANGE), dict(BOTH, staging_hours=48), PAIR),
    ('start of the staging time lost', ('hook', KEYCHANGE), dict(BOTH, staging_hours=48),
     dict(PAIR, state=state('A', 'B'))),
    ('live again after going live', ('hook', CERTCHANGE), dict(BOTH, staging_hours=48),
     the(live_key=key('B', 3), live_crt=crt('B'), state=state('A', 'B', hours=49))),

    # -- 6. going live
    ('published too short', WAIT, dict(BOTH, staging_hours=48),
     dict(PAIR, state=state('A', 'B', hours=47.99))),
    ('published long enough', ('unstage', ''), dict(BOTH, staging_hours=48),
     dict(PAIR, state=state('A', 'B', hours=48))),
    ('fractions of an hour', ('unstage', ''), dict(BOTH, staging_hours=.5),
     dict(PAIR, state=state('A', 'B', hours=.5))),
    ('published long ago, without -k', ('unstage', ''), dict(BOTH, staging_hours=48),
     dict(PAIR, hooks=False, state=state('A', 'B', hours=99))),
    ('published long enough, but a hook is owed', ('hook', CERTCHANGE),
     dict(BOTH, staging_hours=48), dict(PAIR, state=state('A', 'B', done='old', hours=99))),
    ('not published, without -k', WAIT, dict(BOTH, staging_hours=48),
     dict(PAIR, hooks=False, state=state(hours=99))),
    ('published, but another pair, without -k', WAIT, dict(BOTH, staging_hours=48),
     dict(PAIR, hooks=False, state=state('A', 'X', hours=99))),
    ('published for another live key, without -k', WAIT, dict(BOTH, staging_hours=48),
     dict(PAIR, hooks=False, state=state('X', 'B', hours=99))),
    ('no hook: the time is noted', ('publish', ''), the(staging_hours=48), PAIR),
    ('no hook: then it runs', WAIT, the(staging_hours=48),
     dict(PAIR, state={'published': NOW - 47 * HOUR})),
    ('no hook: and is over', ('unstage', ''), the(staging_hours=48),
     dict(PAIR, state={'published': NOW - 48 * HOUR})),
    ('the certificate first', ('request', 'staging'), the(staging_hours=48),
     dict(NEW, state={'published': NOW - 99 * HOUR})),
    ('no certificate, none may be requested', WAIT, the(staging_hours=48),
     dict(NEW, state=dict({'published': NOW - 99 * HOUR}, **retry(5)))),
    ('its certificate has expired, none may be requested', WAIT, the(staging_hours=48),
     dict(PAIR, staging_crt=crt('B', -1), state=dict({'published': NOW - 99 * HOUR}, **retry(5)))),
    ('its certificate has other names, none may be requested', WAIT, the(staging_hours=48),
     dict(PAIR, staging_crt=crt('B', names=['b.example']),
          state=dict({'published': NOW - 99 * HOUR}, **retry(5)))),
    ('its certificate has expired, one was requested in vain', WAIT, the(staging_hours=48),
     dict(PAIR, staging_crt=crt('B', -1), asked=frozenset('B'),
          state={'published': NOW - 99 * HOUR})),

    # -- staging-hours = 0: at once, then the hooks once
    ('at once', ('unstage', ''), {}, PAIR),
    ('at once, hooks later', ('unstage', ''), BOTH, PAIR),
    ('at once, whatever the state says', ('unstage', ''), BOTH, dict(PAIR, state=state('X', 'Y'))),
    ('at once, without -k', ('unstage', ''), BOTH, dict(PAIR, hooks=False)),
    ('but with its certificate', ('request', 'staging'), BOTH, NEW),
    ('no certificate for it: the hooks of the live one', ('hook', CERTCHANGE), BOTH,
     dict(NEW, state=retry(5))),
    ('its certificate has expired: the hooks of the live one', ('hook', CERTCHANGE), BOTH,
     dict(PAIR, staging_crt=crt('B', -1), state=retry(5))),

    # -- the clock
    ('a new key: is the clock right?', CLOCK, {}, dict(OLD, skew=None)),
    ('going live: is the clock right?', CLOCK, dict(BOTH, staging_hours=48),
     dict(PAIR, skew=None, state=state('A', 'B', hours=48))),
    ('going live at once: is the clock right?', CLOCK, {}, dict(PAIR, skew=None)),
    ('start of the staging time: is the clock right?', CLOCK, the(staging_hours=48),
     dict(PAIR, skew=None)),
    ('publishing: is the clock right?', CLOCK, dict(BOTH, staging_hours=48),
     dict(PAIR, skew=None, state=state())),
    ('nothing due: the clock does not matter', WAIT, dict(BOTH, staging_hours=48),
     dict(PAIR, skew=None, state=state('A', 'B', hours=1))),
    ('nothing due at all: the clock does not matter', WAIT, {}, the(skew=None)),
    ('plain hooks: the clock does not matter', ('hook', CERTCHANGE), BOTH, the(skew=None)),
    ('wrong clock: no new key', WAIT, {}, dict(OLD, skew=2 * HOUR)),
    ('slow clock: no new key', WAIT, {}, dict(OLD, skew=-2 * HOUR)),
    ('nearly right: a new key', ('stage', ''), {}, dict(OLD, skew=.9 * HOUR)),
    ('wrong clock: nothing goes live', WAIT, dict(BOTH, staging_hours=48),
     dict(PAIR, skew=-2 * HOUR, state=state('A', 'B', hours=99))),
    ('wrong clock: nothing goes live at once', ('hook', CERTCHANGE), BOTH,
     dict(PAIR, skew=400 * DAY)),

    # -- renew
    ('renew', ('request', 'live'), BOTH, the(force='renew', state=state())),
    ('renew, done', WAIT, BOTH, the(force='renew', state=state(), asked=frozenset('A'))),
    ('renew, the staged one too', ('request', 'staging'), dict(BOTH, staging_hours=48),
     dict(PAIR, force='renew', state=state('A', 'B', hours=1), asked=frozenset('A'))),
    ('renew, both done', WAIT, dict(BOTH, staging_hours=48),
     dict(PAIR, force='renew', state=state('A', 'B', hours=1), asked=frozenset('AB'))),
    ('renew, but the server said when', WAIT, BOTH,
     the(force='renew', state=dict(state(), **retry(5, True)))),
    ('renew --new-key', ('stage', ''), {}, the(force='new-key')),
    ('renew --new-key, made in this run', WAIT, {},
     the(force='new-key', asked=frozenset(['stage']))),
    ('renew --new-key, one is staged', WAIT, the(staging_hours=48),
     dict(PAIR, force='new-key', state={'published': NOW})),
    ('renew --new-key, one without certificate', ('request', 'staging'), the(staging_hours=48),
     dict(NEW, force='new-key')),
    ('renew --new-key with a wrong clock', WAIT, {}, the(force='new-key', skew=5 * HOUR)),

    # -- DANE: DNS decides, not the word of a hook
    ('published for long, but not looked', ('look', 'dns'), DANE,
     dict(PAIR, state=state('A', 'B', hours=999))),
    ('seen for long, but not looked again', ('look', 'dns'), DANE,
     dict(PAIR, state=state('A', 'B', hours=999, seen=NOW - 99 * HOUR, ttl=60))),
    ('seen for long, and now too', ('unstage', ''), DANE,
     dict(PAIR, dns=[], state=state('A', 'B', hours=999, seen=NOW - 48 * HOUR, ttl=60))),
    ('published for long, seen just now', WAIT, DANE,
     dict(PAIR, dns=[], state=state('A', 'B', hours=999, seen=NOW - HOUR, ttl=60))),
    ('seen for staging-hours, but not for 2 x TTL', WAIT, DANE,
     dict(PAIR, dns=[], state=state('A', 'B', hours=999, seen=NOW - 49 * HOUR, ttl=25 * HOUR))),
    ('seen, then written anew', WAIT, DANE,
     dict(PAIR, dns=[], state=state('A', 'B', hours=1, seen=NOW - 999 * HOUR, ttl=60))),
    ('seen for 2 x TTL', ('unstage', ''), DANE,
     dict(PAIR, dns=[], state=state('A', 'B', hours=999, seen=NOW - 50 * HOUR, ttl=25 * HOUR))),
    ('not in DNS: publish it again', ('hook', KEYCHANGE), DANE,
     dict(PAIR, dns=['it is not there'], state=state('A', 'B', hours=999, ttl=60))),
    ('not in DNS: once a run', WAIT, DANE,
     dict(PAIR, dns=['it is not there'], asked=frozenset([KEYCHANGE]),
          state=state('A', 'B', hours=999, ttl=60))),
    ('not in DNS, without -k', WAIT, DANE,
     dict(PAIR, dns=['it is not there'], hooks=False, state=state('A', 'B', hours=999, ttl=60))),
    ('in DNS without a hook', ('look', 'dns'), dict(DANE, post_keychange=None),
     dict(PAIR, state={'certchange': 'crt A', 'published': NOW - 999 * HOUR})),

    # -- and the services, before the old key leaves DNS
    ('look at the services first', ('look', 'served'), dict(DANE, served=['mx:25/smtp']),
     the(live_key=key('B', 9), live_crt=crt('B'), state=state('A', 'B', done='crt B'))),
    ('they use the live key', ('hook', KEYCHANGE), dict(DANE, served=['mx:25/smtp']),
     the(live_key=key('B', 9), live_crt=crt('B'), served=[],
          state=state('A', 'B', done='crt B'))),
    ('one does not: tell it again', ('hook', CERTCHANGE), dict(DANE, served=['mx:25/smtp']),
     the(live_key=key('B', 9), live_crt=crt('B'), served=['mx uses another key'],
          state=state('A', 'B', done='crt B'))),
    ('one does not, once a run', WAIT, dict(DANE, served=['mx:25/smtp']),
     the(live_key=key('B', 9), live_crt=crt('B'), served=['mx uses another key'],
          asked=frozenset([CERTCHANGE]), state=state('A', 'B', done='crt B'))),
    ('the services do not matter for more records', ('hook', KEYCHANGE),
     dict(DANE, served=['mx:25/smtp']), dict(PAIR, state=state(ttl=60)))]


class Table(unittest.TestCase):
    def test_rows(self):
        for text, expected, options, given in ROWS:
            with self.subTest(text):
                step = decide(config(**options), facts(**given), NOW)
                found = step.verb, None if step.verb in ('wait', 'clock') else step.what
                self.assertEqual(found, expected, step)

    def test_rows_differ(self):
        self.assertEqual(len({row[0] for row in ROWS}), len(ROWS))

    def test_it_is_pure(self):
        """The same facts, the same step; and the facts are as they were."""
        for text, _, options, given in ROWS:
            with self.subTest(text):
                some, one = facts(**given), config(**options)
                before = repr((some, one))
                self.assertEqual(decide(one, some, NOW), decide(one, some, NOW))
                self.assertEqual(repr((some, one)), before)


class Tempting(unittest.TestCase):
    """Designs that were not taken, because a service or a cache would once be wrong."""

    def step(self, options, **given):
        step = decide(config(**options), facts(**given), NOW)
        return step.verb, step.what

    def test_the_clock_does_not_start_when_the_key_is_made(self):
        old = the(staging_key=key('B', 30), staging_crt=crt('B', 61))
        staged = dict(BOTH, staging_hours=48)
        self.assertEqual(self.step(staged, **dict(old, state=state()))[0], 'hook')
        self.assertEqual(self.step(staged, **dict(old, state=state('A', 'B', hours=1)))[0], 'wait')
        self.assertEqual(self.step(the(staging_hours=48), **old)[0], 'publish')

    def test_the_old_key_leaves_dns_after_the_services_left_it(self):
        live = the(live_key=key('B', 3), live_crt=crt('B'))
        for known in state('A', 'B', hours=49), state('A', 'B'), {}, state('A'):
            self.assertEqual(self.step(BOTH, **dict(live, state=known)), ('hook', CERTCHANGE))

    def test_a_hook_that_failed_is_run_again(self):
        """Nothing but the state says that a hook is done, and that only for what is there now."""
        for known in {}, state(done='crt A0'), {'certchange': ''}, {'keychange': ['A', None]}:
            self.assertEqual(self.step(BOTH, state=known), ('hook', CERTCHANGE))

    def test_the_word_of_the_hook_is_no_proof(self):
        known = state('A', 'B', hours=9999, ttl=60)
        for seen in {}, {'seen': NOW - 9999 * HOUR}:
            for dns in None, ['no answer']:
                found = self.step(DANE, **dict(PAIR, dns=dns, state=dict(known, **seen)))
                self.assertNotEqual(found[0], 'unstage')
        self.assertNotEqual(self.step(DANE, **dict(PAIR, dns=[], state=known))[0], 'unstage')

    def test_services_are_looked_at_before_a_key_leaves_dns(self):
        options = dict(DANE, served=['mx.example.org:25/smtp'])
        for served in None, ['cannot be reached']:
            found = self.step(options, live_key=key('B'), live_crt=crt('B'), served=served,
                              state=state('A', 'B', done='crt B', hours=60))
            self.assertNotEqual(found, ('hook', KEYCHANGE))

    def test_services_are_looked_at_though_the_next_key_is_staged(self):
        """The record of the key before is still there, and a service may still use that key."""
        options = dict(DANE, served=['mx.example.org:25/smtp'])
        staged = the(live_key=key('B'), live_crt=crt('B'), staging_key=key('C', 0),
                      staging_crt=crt('C', 88), state=state('A', 'B', done='crt B', ttl=60))
        for served in None, ['cannot be reached']:
            found = self.step(options, served=served, **staged)
            self.assertNotEqual(found, ('hook', KEYCHANGE))

    def test_nothing_new_by_a_clock_that_nobody_could_look_at(self):
        """As long as no request is allowed, the CA cannot say what time it is."""
        for server in True, False:
            self.assertNotEqual(self.step({}, **dict(
                OLD, skew=None, state=retry(5, server)))[0], 'stage')
            self.assertNotEqual(self.step(dict(BOTH, staging_hours=48), **dict(
                PAIR, skew=None, state=dict(state('A', 'B', hours=48), **retry(5, server))))[0],
                'unstage')

    def test_no_renewal_by_a_clock_that_is_ahead(self):
        """It would be due again tomorrow, until the CA has had enough of it."""
        self.assertNotEqual(self.step({}, **dict(DUE, skew=-40 * DAY))[0], 'request')


class Words(unittest.TestCase):
    """What `status`, `-n` and errors say comes from the same decision."""

    def step(self, options=None, **given):
        return decide(config(**options or {}), facts(**given), NOW)

    def test_requests(self):
        for parts, given in ((['none'], the(live_crt=None)),
                             (['none for this key'], the(live_crt=crt('X'))),
                             (['other names'], the(live_crt=crt('A', names=['b.example']))),
                             (['ends 2033-05-28 03:33 UTC'], the(live_crt=crt('A', 10)))):
            step = self.step(**given)
            self.assertIn('example.org', step.text)
            self.assertIn("'live'", step.text)
            for part in parts:
                self.assertIn(part, step.why)
        self.assertIn("'next'", self.step(the(staging='next'), **NEW).text)

    def test_since_when_a_request_is_due(self):
        self.assertEqual(self.step(live_crt=crt('A', 25)).when, NOW - 5 * DAY)

    def test_next_renewal(self):
        step = self.step(live_crt=crt('A', 40))
        self.assertEqual((step.verb, step.when), ('wait', NOW + 10 * DAY))
        self.assertIn('renewed', step.why)

    def test_next_key(self):
        step = self.step(live_key=key('A', 360))
        self.assertEqual((step.verb, step.when), ('wait', NOW + 5 * DAY))
        self.assertIn('key', step.why)

    def test_end_of_staging(self):
        step = self.step(dict(BOTH, staging_hours=48),
                         **dict(PAIR, state=state('A', 'B', hours=40)))
        self.assertEqual((step.verb, step.when), ('wait', NOW + 8 * HOUR))
        self.assertIn('staging', step.why)

    def test_waiting_for_the_hook(self):
        step = self.step(dict(BOTH, staging_hours=48), **dict(PAIR, hooks=False, state=state()))
        self.assertEqual(step.verb, 'wait')
        self.assertIn(KEYCHANGE, step.why)

    def test_end_of_a_retry(self):
        step = self.step(**dict(DUE, state=retry(500)))
        self.assertEqual((step.verb, step.what, step.when), ('wait', 'request', NOW + 500))
        self.assertIn('ends 2033-06-07', step.why)


class RenewalTime(unittest.TestCase):
    def test_table(self):
        for life, days, ahead in (
                (90 * DAY, None, 30 * DAY), (45 * DAY, None, 15 * DAY),
                (10 * DAY, None, 10 * DAY / 3), (10 * DAY - 1, None, 5 * DAY - .5),
                (160 * HOUR, None, 80 * HOUR), (12 * HOUR, None, 6 * HOUR), (60, None, 30),
                (90 * DAY, 15, 15 * DAY), (90 * DAY, 30, 30 * DAY), (90 * DAY, 60, 45 * DAY),
                (90 * DAY, .5, DAY / 2), (45 * DAY, 15, 15 * DAY), (45 * DAY, 30, 22.5 * DAY),
                (160 * HOUR, 15, 80 * HOUR), (160 * HOUR, 1, 24 * HOUR), (12 * HOUR, 15, 6 * HOUR)):
            with self.subTest(life=life, days=days):
                found = renewal_time(config(renew_cert_before_expiry_days=days),
                                     Crt((), NOW, NOW + life, '', ''))
                self.assertAlmostEqual(NOW + life - found, ahead, delta=1)


class State(unittest.TestCase):
    """What cannot be believed is left out, alone: hooks run once more, clocks start anew."""
    GOOD = dict(state('A', 'B', hours=5), seen=NOW - 4 * HOUR, challenges=['/x/w/token'],
                account={'directory': 'https://a/', 'url': 'https://a/1', 'thumbprint': 'x'},
                owed=['a'], **retry(500))

    def read(self, text):
        with tempfile.TemporaryDirectory() as folder:
            with open(folder + '/live.state', 'wb') as file:
                file.write(text if isinstance(text, bytes) else json.dumps(text).encode())
            return read_state(config(certs=folder), NOW)

    def test_good(self):
        self.assertEqual(self.read(self.GOOD), self.GOOD)

    def test_missing_folder(self):
        self.assertEqual(read_state(config(certs='/nonexistent'), NOW), {})

    def test_garbage(self):
        for text in (b'', b'{', b'\0' * 100, b'[]', b'[[]]', b'null', b'5', b'"x"', b'\xff\xfe{}',
                     b'{"certchange": "crt A"', b'[' * 100000, b'{"a":' * 100000, b'[[1, 2], [3]]',
                     b'[["certchange", "x", "y"]]'):
            with self.subTest(text[:30]):
                self.assertEqual(self.read(text), {})

    def test_wrong_types(self):
        wrong = {'certchange': [5, None, ['x'], {}, True], 'keychange': ['A', 5, None, {}, True],
                 'published': ['5', None, [5], {}, True], 'seen': ['5', None, [5], {}, True],
                 'challenges': ['/x/w/token', [5], {}, 5, [None], [['x']]],
                 'account': ['x', [], {}, {'directory': 5, 'url': 'x', 'thumbprint': 'x'}],
                 'owed': ['x', {}, 5],
                 'retry': [5, [], {}, 'x', dict(self.GOOD['retry'], count='2'),
                           dict(self.GOOD['retry'], after=None),
                           dict(self.GOOD['retry'], server='yes'),
                           dict(self.GOOD['retry'], names='example.org'),
                           dict(self.GOOD['retry'], names=[5]),
                           dict(self.GOOD['retry'], error=None)]}
        for name, values in wrong.items():
            rest = {key: value for key, value in self.GOOD.items() if key != name}
            for value in values:
                with self.subTest(name=name, value=value):
                    self.assertEqual(self.read(dict(self.GOOD, **{name: value})), rest)

    def test_times_in_the_future(self):
        for name in 'published', 'seen':
            rest = {key: value for key, value in self.GOOD.items() if key != name}
            for value in (NOW + 5, NOW + 99 * DAY, 1e300, -5):
                with self.subTest(name=name, value=value):
                    self.assertEqual(self.read(dict(self.GOOD, **{name: value})), rest)
            for value in b'Infinity', b'-Infinity', b'NaN', b'1e999', b'9' * 5000:
                text = json.dumps(dict(self.GOOD, **{name: 0}))
                text = text.replace('"%s": 0' % name, '"%s": %s' % (name, value.decode()))
                self.assertNotIn(name, self.read(text.encode()))
        rest = {key: value for key, value in self.GOOD.items() if key != 'retry'}
        for seconds, server, kept in ((DAY - 1, False, True), (2 * DAY, False, False),
                                      (7 * DAY, True, True), (9 * DAY, True, False),
                                      (1e300, True, False)):
            with self.subTest(seconds=seconds, server=server):
                given = dict(self.GOOD, **retry(seconds, server))
                self.assertEqual(self.read(given), given if kept else rest)

    def test_what_is_removed_lies_where_challenges_lie(self):
        for wrong in 'relative/token', '../token', '/x/w/../../etc/passwd.conf', '/x/w/a b', '':
            self.assertNotIn('challenges', self.read(dict(self.GOOD, challenges=[wrong])))


class Defaults(unittest.TestCase):
    def test_config_of_these_tests_is_that_of_the_program(self):
        with tempfile.NamedTemporaryFile('w', suffix='.conf') as file:
            file.write('domains = example.org\nmax-key-age-days = 365\naccount-key = /x/a\n'
                       'challenge-dir = /x/w\ncerts = /x/c\nkeys = /x/k\nbackups = /x/b\n')
            file.flush()
            self.assertEqual(read_config(file.name)._replace(file='/x/conf'), config())


if __name__ == '__main__':
    unittest.main()
