"""Mails: invitations, accounts that people make for themselves, addresses that are proven, and another password."""

import re
import statistics
import threading
import time

import pytest

from harness import command, done, free_port, refused, unique, until
from mailbox import Folder, MailServer, certificate, link, token
from oauth import App, Browser, hidden, totp

KEIKO_ENV = {"KEIKO_MAIL_FOLDER": "mails", "KEIKO_USERS_REGISTRATION": "open"}
PASSWORD = "a long enough password"


@pytest.fixture(scope="module")
def folder(keiko):
    return Folder(keiko.home / "mails")


@pytest.fixture(scope="module")
def anyone(keiko):
    return keiko.client()


def address():
    return f"{unique('ada')}@example.com"


def invite(admin, to, roles=()):
    return done(admin.post("/users/actions/invite", {"email": to, "roles": list(roles)}), 201)


def join(anyone, mail, name=None, password=PASSWORD):
    return anyone.post("/auth/invitations/accept", {"token": token(mail), "username": name or unique("ada"), "password": password})


def account(keiko, admin, folder, anyone, roles=("user",)):
    """A person with a proven address: `(name, address, id)`."""
    to, name = address(), unique("ada")
    invite(admin, to, roles)
    made = done(join(anyone, folder.to(to)[0], name), 201)
    return name, to, made["id"]


def forgot(anyone, to, **more):
    done(anyone.post("/auth/password-resets", {"email": to, **more}), 202)


def reset(anyone, mail, password):
    return anyone.post("/auth/password-resets/confirm", {"token": token(mail), "password": password})


def latest(folder, to, count):
    """The last of `count` mails to an address: ids are made in order of time."""
    return max(folder.to(to, count), key=lambda mail: mail["message-id"])


def is_refused(keiko, name, password):
    refused(keiko.client().post("/auth/login", {"username": name, "password": password}), 401, "INVALID_CREDENTIALS")


# Invitations


def test_should_make_an_account_of_an_invitation_once(keiko, admin, folder, anyone):
    to, name = address(), unique("ada")
    invited = invite(admin, to, ["developer"])["attributes"]
    assert invited["status"] in ("queued", "sent"), "whoever sends is quick at times"
    assert (invited["purpose"], invited["email"], invited["link"]) == ("invitation", to, None)
    mail = folder.to(to)[0]
    assert mail["from"] == "Keiko <keiko@localhost>" and mail["auto-submitted"] == "auto-generated"
    assert link(mail).startswith(f"{keiko.url}/account/join?token=km_default_mail_")
    made = done(join(anyone, mail, name), 201)
    assert (made["id"], made["attributes"]) == (invited["user_id"], {"username": name, "email": to, "roles": ["developer"]})
    person = keiko.login(name, PASSWORD)
    assert done(person.get("/auth/me"))["attributes"]["roles"] == ["developer"]
    assert done(admin.get(f"/users/{made['id']}"))["attributes"]["email"] == to
    refused(join(anyone, mail), 422, "LINK_INVALID")
    refused(admin.post("/users/actions/invite", {"email": to.upper()}), 409, "EMAIL_TAKEN")


def test_should_end_an_invitation_by_a_later_one_and_by_hand(keiko, admin, folder, anyone):
    to = address()
    first = invite(admin, to)
    second = invite(admin, to)
    mails = folder.to(to, 2)
    by_id = {id: next(mail for mail in mails if id in mail["message-id"]) for id in (first["id"], second["id"])}
    refused(join(anyone, by_id[first["id"]]), 422, "LINK_INVALID")
    assert done(admin.get(f"/mails/{first['id']}"))["attributes"]["status"] == "revoked"
    assert admin.delete(f"/mails/{second['id']}").status_code == 204
    refused(join(anyone, by_id[second["id"]]), 422, "LINK_INVALID")
    shown = done(admin.get(f"/mails/{second['id']}"))["attributes"]
    assert (shown["status"], shown["email"]) == ("revoked", None), "an address is kept no longer than it is needed"


def test_should_let_nobody_invite_beyond_their_own_power(keiko, admin, folder, anyone):
    role = unique("inviter")
    done(admin.post("/roles", {"name": role, "permissions": ["users.create", "users.read", "tasks.read"]}), 201)
    small = keiko.user(admin, [role])
    refused(small.post("/users/actions/invite", {"email": address(), "roles": ["admin"]}), 403, "PERMISSION_ESCALATION")
    refused(keiko.user(admin, ["developer"]).post("/users/actions/invite", {"email": address()}), 403, "PERMISSION_DENIED")
    # What they gave ends with what they had.
    to = address()
    done(small.post("/users/actions/invite", {"email": to, "roles": [role]}), 201)
    mail = folder.to(to)[0]
    done(admin.put(f"/users/{small.id}", {"roles": []}))
    refused(join(anyone, mail), 422, "LINK_INVALID")


def test_should_refuse_forged_and_foreign_links(keiko, admin, folder, anyone):
    to = address()
    invite(admin, to)
    good = token(folder.to(to)[0])
    head, tag = good.rsplit(".", 1)
    other = keiko.tenant(admin)
    swapped = good.replace("km_default_", f"km_{other.slug}_")
    for bad in ("", "x", head, f"{head}.", f"{head}.{tag[:-1]}", f"{head}.{'A' * len(tag)}", good + "A", swapped, good.replace("km_", "kr_")):
        refused(anyone.post("/auth/invitations/accept", {"token": bad, "username": unique("eve"), "password": PASSWORD}), (400, 422))
        assert Browser(keiko).http.get("/account/join", params={"token": bad}).status_code == 400
    # A link is good for what it was written for.
    refused(anyone.post("/auth/password-resets/confirm", {"token": good, "password": PASSWORD}), 422, "LINK_INVALID")
    refused(anyone.post("/auth/email/confirm", {"token": good}), 422, "LINK_INVALID")
    # And the invited may still take it: looking at it used nothing up.
    name = admin.get("/auth/me").json()["data"]["attributes"]["username"]
    refused(anyone.post("/auth/invitations/accept", {"token": good, "username": name, "password": PASSWORD}), 409, "NAME_TAKEN")
    refused(anyone.post("/auth/invitations/accept", {"token": good, "username": unique("ada"), "password": "short"}), 400)
    done(anyone.post("/auth/invitations/accept", {"token": good, "username": unique("ada"), "password": PASSWORD}), 201)


def test_should_invite_into_the_tenant_of_the_inviter(keiko, admin, folder, anyone):
    boss, to, name = keiko.tenant(admin), address(), unique("ada")
    mail_id = invite(boss, to, ["user"])["id"]
    mail = folder.to(to)[0]
    assert f"tenant {boss.slug}" in mail.get_content()
    done(join(anyone, mail, name), 201)
    assert done(keiko.login(name, PASSWORD, boss.slug).get("/auth/me"))["attributes"]["tenant"] == boss.slug
    is_refused(keiko, name, PASSWORD)
    refused(admin.get(f"/mails/{mail_id}"), 404, "MAIL_NOT_FOUND")
    invite(admin, to)  # An address is taken in its tenant only.
    late = address()
    invite(boss, late)
    mail = folder.to(late)[0]
    done(admin.post(f"/tenants/{boss.slug}/actions/suspend", {"reason": "unpaid"}))
    refused(join(anyone, mail), 422, "LINK_INVALID")


@pytest.mark.parametrize("bad", ["", "ada", "ada@", "@example.com", "a@b@c.example", "ada@example.com\r\nBcc: eve@example.com", "a b@example.com", "ada@[127.0.0.1]", f"{'x' * 250}@example.com", "ada@example.com, eve@example.com"])
def test_should_send_to_nothing_but_one_address(admin, anyone, bad):
    refused(admin.post("/users/actions/invite", {"email": bad}), 400, "VALIDATION_FAILED")
    for path in ("/auth/register", "/auth/password-resets"):
        refused(anyone.post(path, {"email": bad}), 400, "VALIDATION_FAILED")


# Registration


def test_should_let_whoever_reads_the_mail_make_an_account(keiko, admin, folder, anyone):
    to, name = address(), unique("ada")
    done(anyone.post("/auth/register", {"email": to}), 202)
    mail = folder.to(to)[0]
    made = done(join(anyone, mail, name), 201)["attributes"]
    assert made == {"username": name, "email": to, "roles": ["user"]}
    # Again: whoever has an account is told so, by mail and by nothing else.
    done(anyone.post("/auth/register", {"email": to.capitalize()}), 202)
    second = latest(folder, to, 2)
    assert second["subject"] == "You have an account at Keiko" and link(second) == f"{keiko.url}/account/reset"


def test_should_not_tell_whether_an_address_is_known(keiko, admin, folder, anyone):
    _, known, _ = account(keiko, admin, folder, anyone)
    _, suspended, person = account(keiko, admin, folder, anyone)
    done(admin.post(f"/users/{person}/actions/suspend", {"reason": "left"}))
    answers, times = {}, {}
    for path in ("/auth/password-resets", "/auth/register"):
        for to in (known, suspended, address()):
            begun = time.monotonic()
            answer = anyone.post(path, {"email": to})
            times.setdefault(path, []).append(time.monotonic() - begun)
            answers.setdefault(path, []).append((answer.status_code, answer.json()["data"]))
    for path, found in answers.items():
        assert found[0] == found[1] == found[2] and found[0][0] == 202, found
        assert statistics.pstdev(times[path]) < 0.1 and min(times[path]) >= 0.29, times
    done(anyone.post("/auth/password-resets", {"email": known, "tenant": "nobody-here"}), 202)
    time.sleep(0.3)
    assert len([mail for mail in folder.all() if mail["to"] == suspended]) == 1, "the suspended hear nothing more than their invitation"


def test_should_slow_down_whoever_fills_a_mailbox(anyone):
    to = address()
    for n in range(8):
        answer = anyone.post("/auth/register", {"email": to.replace("@", f"+{n}@")})
        if answer.status_code != 202:
            break
    error = refused(answer, 429, "MAIL_THROTTLED")
    assert error["details"]["retry_after_s"] >= 1 and answer.headers["retry-after"]
    done(anyone.post("/auth/register", {"email": address()}), 202)


# What ends links


def test_should_call_links_back_with_everything_else(new_keiko):
    keiko = new_keiko(env={"KEIKO_MAIL_FOLDER": "mails", "KEIKO_USERS_REGISTRATION": "open"}).start()
    folder, admin, anyone, to = Folder(keiko.home / "mails"), keiko.login(), keiko.client(), address()
    invite(admin, to, ["admin"])
    mail = folder.to(to)[0]
    done(admin.post("/security/actions/revoke-all", {}))
    refused(join(anyone, mail), 422, "LINK_INVALID")
    # Whoever asked while everybody could make an account finds it closed now.
    done(anyone.post("/auth/register", {"email": address()}), 202)
    wish = until(lambda: [m for m in folder.all() if m["to"] != to], "it arrived")[0]
    keiko.stop()
    keiko.env["KEIKO_USERS_REGISTRATION"] = "invited"
    keiko.start()
    refused(join(keiko.client(), wish), 403, "REGISTRATION_CLOSED")


def test_should_not_let_a_login_that_was_under_way_survive_another_password(keiko, admin, folder, anyone):
    name, to, _ = account(keiko, admin, folder, anyone)
    forgot(anyone, to)
    mail = latest(folder, to, 2)
    tokens = []

    def sign_in():
        client = keiko.client()
        while (answer := client.post("/auth/login", {"username": name, "password": PASSWORD})).status_code == 200:
            tokens.append(answer.json()["data"]["attributes"])

    threads = [threading.Thread(target=sign_in) for _ in range(4)]
    for thread in threads:
        thread.start()
    until(lambda: len(tokens) > 4, "logins are under way")
    assert reset(anyone, mail, "quite another password").status_code == 204
    for thread in threads:
        thread.join()
    alive = [t for t in tokens if keiko.client(token=t["access_token"]).get("/auth/me").status_code == 200]
    assert not alive, f"{len(alive)} of {len(tokens)} sessions by the old password are alive"


def test_should_answer_a_repeated_invitation_with_the_same_one(keiko, admin):
    to, key = address(), {"Idempotency-Key": unique("k")}
    invite(admin, to)
    body = {"email": to, "roles": []}
    first = done(admin.post("/users/actions/invite", body, headers=key), 201)
    again = done(admin.post("/users/actions/invite", body, headers=key), 201)
    assert first["id"] == again["id"] and again["attributes"]["status"] in ("queued", "sent")


def test_should_meet_the_version_of_the_user_while_a_mail_is_open(keiko, admin, folder, anyone):
    _, to, person = account(keiko, admin, folder, anyone)
    forgot(anyone, to)
    latest(folder, to, 2)
    etag = admin.get(f"/users/{person}").headers["etag"]
    assert admin.post(f"/users/{person}/actions/suspend", {"reason": "left"}, headers={"If-Match": etag}).status_code == 200


# Addresses


def test_should_use_an_address_only_once_it_is_proven(keiko, admin, folder, anyone):
    person, to = keiko.user(admin, ["user"]), address()
    refused(person.put("/auth/email", {"email": to, "password": "wrong"}), 403, "PASSWORD_WRONG")
    done(person.put("/auth/email", {"email": to, "password": person.password}), 202)
    mail = folder.to(to)[0]
    assert done(admin.get(f"/users/{person.id}"))["attributes"]["email"] is None
    forgot(anyone, to)
    assert anyone.post("/auth/email/confirm", {"token": token(mail)}).status_code == 204
    assert done(admin.get(f"/users/{person.id}"))["attributes"]["email"] == to
    refused(anyone.post("/auth/email/confirm", {"token": token(mail)}), 422, "LINK_INVALID")
    # Somebody else cannot have it, and learns that only where the mail is read.
    other = keiko.user(admin, ["user"])
    done(other.put("/auth/email", {"email": to, "password": other.password}), 202)
    second = folder.to(to, 2)
    second = next(m for m in second if m["message-id"] != mail["message-id"])
    refused(anyone.post("/auth/email/confirm", {"token": token(second)}), 409)
    assert person.delete("/auth/email").status_code == 204
    assert done(admin.get(f"/users/{person.id}"))["attributes"]["email"] is None
    agent = keiko.agent(admin, unique("cap")).api
    refused(agent.put("/auth/email", {"email": address(), "password": "x"}), 422, "NO_SESSION")


def test_should_tell_the_address_to_clients_with_its_scope_only(keiko, admin, folder, anyone):
    name, to, _ = account(keiko, admin, folder, anyone)
    client = App(keiko, admin)
    for scope, seen in (("openid email", to), ("openid profile", None)):
        page, left = Browser(keiko).sign_in(client.url("v" * 43, scope=scope), username=name, password=PASSWORD)
        assert left, page.text
        tokens = client.redeem(re.search(r"code=([^&]+)", left)[1], "v" * 43).json()
        claims = client.http.get("/oauth/userinfo", headers={"Authorization": f"Bearer {tokens['access_token']}"}).json()
        assert (claims.get("email"), claims.get("email_verified")) == (seen, True if seen else None), claims


def test_should_keep_addresses_out_of_the_log_and_erase_them(keiko, admin, folder, anyone):
    _, to, person = account(keiko, admin, folder, anyone)
    mails = [event for event in admin.events() if event["type"].startswith("identity.mail.")]
    assert mails and to not in str(mails)
    erasure = done(admin.post("/erasures", {"subject": person}), 202)["id"]
    until(lambda: done(admin.get(f"/erasures/{erasure}"))["attributes"]["status"] == "completed", "it is done")
    assert to not in str(admin.events()) and to not in admin.get("/users", limit=500).text
    forgot(anyone, to)
    done(anyone.post("/auth/register", {"email": to}), 202)
    assert "account/join" in link(folder.to(to, 2)[-1]), "the address is free again"


# Another password


def test_should_set_another_password_and_end_sessions(keiko, admin, folder, anyone):
    name, to, person = account(keiko, admin, folder, anyone)
    session = keiko.login(name, PASSWORD)
    forgot(anyone, to)
    forgot(anyone, to)
    first, second = [mail for mail in folder.to(to, 3) if "account/password" in link(mail)]
    assert reset(anyone, first, "quite another password").status_code == 204
    is_refused(keiko, name, PASSWORD)
    keiko.login(name, "quite another password")
    until(lambda: session.get("/auth/me").status_code == 401, "the old session is over")
    refused(reset(anyone, first, PASSWORD), 422, "LINK_INVALID")
    refused(reset(anyone, second, PASSWORD), 422, "LINK_INVALID")
    seen = lambda kind: [e["attributes"] for e in done(admin.get("/security/events", kind=kind, limit=500))]  # noqa: E731
    is_it = lambda e: e["actor"]["id"] == person and e["data"]["purpose"] == "reset" and e["data"]["address"] == "127.0.0.1"  # noqa: E731
    until(lambda: any(is_it(e) for e in seen("identity.link.followed")), "who followed the link is written down")
    until(lambda: seen("identity.link.refused"), "who came too late is written down")


def test_should_leave_the_second_factor_as_it_is(keiko, admin, folder, anyone):
    name, to, _ = account(keiko, admin, folder, anyone)
    person = keiko.login(name, PASSWORD)
    secret = done(person.post("/auth/mfa/actions/begin", {}))["attributes"]["secret"]
    done(person.post("/auth/mfa/actions/confirm", {"code": totp(secret)}))
    forgot(anyone, to)
    mail = next(mail for mail in folder.to(to, 2) if "account/password" in link(mail))
    assert reset(anyone, mail, "quite another password").status_code == 204
    refused(anyone.post("/auth/login", {"username": name, "password": "quite another password"}), 401, "MFA_REQUIRED")


@pytest.mark.embedded
def test_should_refuse_links_from_before_a_reset_on_the_stopped_server(new_keiko):
    server = new_keiko(env=KEIKO_ENV).start()
    folder, admin, to = Folder(server.home / "mails"), server.login(), address()
    done(admin.put("/auth/email", {"email": to, "password": server.password}), 202)
    assert server.client().post("/auth/email/confirm", {"token": token(folder.to(to)[0])}).status_code == 204
    forgot(server.client(), to)
    mail = next(mail for mail in folder.to(to, 2) if "account/password" in link(mail))
    assert server.stop() == 0
    assert command(server.home, "admin", "reset-password", "--data-dir", server.data_dir).returncode == 0
    server.restart()
    refused(reset(server.client(), mail, "quite another password"), 422, "LINK_INVALID")


def test_should_refuse_links_of_the_suspended_and_of_changed_passwords(keiko, admin, folder, anyone):
    name, to, person = account(keiko, admin, folder, anyone)
    forgot(anyone, to)
    mail = next(mail for mail in folder.to(to, 2) if "account/password" in link(mail))
    refused(reset(anyone, mail, name), (400, 422))  # The password is the user name, or too short: the link stays good.
    session = keiko.login(name, PASSWORD)
    done(session.post("/auth/password", {"current": PASSWORD, "new": "the next long password"}))
    refused(reset(anyone, mail, "quite another password"), 422, "LINK_INVALID")
    forgot(anyone, to)
    mail = latest(folder, to, 3)
    done(admin.post(f"/users/{person}/actions/suspend", {"reason": "left"}))
    refused(reset(anyone, mail, "quite another password"), 422, "LINK_INVALID")
    done(admin.post(f"/users/{person}/actions/reinstate"))
    refused(reset(anyone, mail, "quite another password"), 422, "LINK_INVALID")


# Pages


def test_should_lead_people_through_pages(keiko, admin, folder):
    browser, to, name = Browser(keiko), address(), unique("ada")
    page, _ = browser.visit("/account/register")
    page, _ = browser.send(page, email=to)
    assert page.status_code == 202 and "Look into your mailbox" in page.text
    page, _ = browser.visit(link(folder.to(to)[0]))
    assert to in page.text and page.headers["referrer-policy"] == "no-referrer" and page.headers["cache-control"] == "no-store"
    page, _ = browser.send(page, username=name, password="short")
    assert page.status_code == 400 and 'value="' + name in page.text and "short" not in page.text.split("<form")[1].split("value")[0]
    page, _ = browser.send(page, username=name, password=PASSWORD)
    assert page.status_code == 200 and "Your account is there" in page.text
    page, _ = browser.visit("/account/reset")
    page, _ = browser.send(page, email=to)
    assert page.status_code == 202
    page, _ = browser.visit(link(latest(folder, to, 2)))
    page, _ = browser.send(page, password="quite another password")
    assert page.status_code == 200 and "Your password is set" in page.text
    keiko.login(name, "quite another password")
    page, _ = browser.visit(link(latest(folder, to, 2)))
    assert page.status_code == 400 and "used already" in page.text


def test_should_refuse_forms_of_other_sites(keiko, admin, folder):
    to = address()
    invite(admin, to)
    page, _ = Browser(keiko).visit(link(folder.to(to)[0]))
    forged = {**hidden(page.text), "username": unique("eve"), "password": PASSWORD}
    answer = Browser(keiko).http.post(str(page.url), data=forged)
    assert answer.status_code == 400 and "Your account is there" not in answer.text
    for path in ("/account/register", "/account/reset", "/account/verify", "/account/password"):
        assert Browser(keiko).http.post(path, data={"email": address(), "token": "x"}).status_code == 400


def test_should_prove_an_address_by_a_page_that_asks_first(keiko, admin, folder):
    person, to = keiko.user(admin, ["user"]), address()
    done(person.put("/auth/email", {"email": to, "password": person.password}), 202)
    browser = Browser(keiko)
    page, _ = browser.visit(link(folder.to(to)[0]))
    assert to in page.text and f"The account &#39;{person.name}&#39;" in page.text, "whose account it is, so that nobody gives an address away"
    assert done(admin.get(f"/users/{person.id}"))["attributes"]["email"] is None, "a program that looks at links proves nothing"
    page, _ = browser.send(page)
    assert page.status_code == 200 and done(admin.get(f"/users/{person.id}"))["attributes"]["email"] == to


def test_should_show_the_way_on_the_sign_in_page(keiko, admin):
    page, _ = Browser(keiko).visit(App(keiko, admin).url("v" * 43))
    assert "/account/reset" in page.text and "/account/register" in page.text


# Settings and ways


def test_should_hand_over_links_where_there_is_no_mail(new_keiko):
    keiko = new_keiko(env={"KEIKO_MAIL_FOLDER": "off"}).start()
    admin, anyone, to = keiko.login(), keiko.client(), address()
    for path in ("/auth/register", "/auth/password-resets"):
        refused(anyone.post(path, {"email": to}), (403, 422), "REGISTRATION_CLOSED" if path.endswith("register") else "MAIL_NOT_CONFIGURED")
    refused(admin.put("/auth/email", {"email": to, "password": keiko.password}), 422, "MAIL_NOT_CONFIGURED")
    invited = invite(admin, to, ["user"])
    url = invited["attributes"]["link"]
    assert done(admin.get(f"/mails/{invited['id']}"))["attributes"]["link"] is None, "shown once"
    assert url not in keiko.logs()
    made = anyone.post("/auth/invitations/accept", {"token": url.split("token=")[1], "username": "ada", "password": PASSWORD})
    assert done(made, 201)["attributes"]["email"] is None, "a link that was handed over proves no address"
    page, _ = Browser(keiko).visit(App(keiko, admin).url("v" * 43))
    assert "/account/reset" not in page.text and "/account/register" not in page.text


def test_should_invite_nobody_where_accounts_are_made_by_administrators(new_keiko):
    keiko = new_keiko(env={"KEIKO_USERS_REGISTRATION": "closed"}).start()
    refused(keiko.login().post("/users/actions/invite", {"email": address()}), 403, "REGISTRATION_CLOSED")
    refused(keiko.client().post("/auth/register", {"email": address()}), 403, "REGISTRATION_CLOSED")
    assert Browser(keiko).http.get("/account/register").status_code == 400


def test_should_invite_and_list_by_commands(keiko, admin, folder, tmp_path):
    env = {"KEIKO_SERVER": keiko.url, "KEIKO_PASSWORD": keiko.password}
    run = lambda *args: command(tmp_path, *args, env=env)  # noqa: E731
    assert run("login", "admin").returncode == 0
    to = address()
    invited = run("users", "invite", to, "--role", "user")
    assert invited.returncode == 0 and to in invited.stdout, invited.stderr
    folder.to(to)
    listed = run("mails", "list", "--all")
    line = next(line for line in listed.stdout.splitlines() if to in line)
    assert "invitation" in line and "sent" in line
    assert run("mails", "revoke", line.split()[0]).returncode == 0
    own = address()
    assert run("account", "set-email", own).returncode == 0
    assert keiko.client().post("/auth/email/confirm", {"token": token(folder.to(own)[0])}).status_code == 204
    assert own in run("users", "list").stdout
    assert run("account", "remove-email").returncode == 0 and own not in run("users", "list").stdout
    wrong = run("users", "invite", "nonsense")
    assert wrong.returncode == 1 and "no address" in wrong.stderr


# A mail server


def smtp(new_keiko, url, **env):
    return new_keiko(env={"KEIKO_MAIL_SMTP_URL": url, "KEIKO_MAIL_FROM": "Keiko <keiko@example.com>", **env})


def test_should_send_by_a_server_with_tls_and_a_password(new_keiko, tmp_path):
    cert, authority = certificate(tmp_path)
    server = MailServer(free_port(), cert, ("keiko@example.com", "p/w d"))
    try:
        port = server.listener.port
        keiko = smtp(new_keiko, f"smtp://keiko%40example.com:p%2Fw%20d@127.0.0.1:{port}", KEIKO_MAIL_TLS_CA=authority).start()
        admin, to = keiko.login(), address()
        id = invite(admin, to)["id"]
        mail = server.to(to)[0]
        assert server.was_protected == [True] and server.logins == ["keiko@example.com"]
        assert mail["message-id"] == f"<{id}@example.com>" and mail["from"] == "Keiko <keiko@example.com>"
        kept = b"".join(file.read_bytes() for file in keiko.data_dir.rglob("*") if file.is_file() and not file.is_socket())
        assert to.encode() not in kept and token(mail).encode() not in kept, "addresses lie under seal"
        done(join(keiko.client(), mail), 201)
        assert "p/w d" not in keiko.logs() and token(mail) not in keiko.logs() and to not in keiko.logs()
    finally:
        server.stop()


def test_should_send_nothing_to_a_server_that_nobody_vouches_for(new_keiko, tmp_path):
    server = MailServer(free_port(), certificate(tmp_path)[0])
    try:
        keiko = smtp(new_keiko, f"smtp://127.0.0.1:{server.listener.port}").start()
        admin = keiko.login()
        mail = invite(admin, address())["id"]
        until(lambda: "could not be handed over" in keiko.logs(), "it was tried")
        assert server.mails == [] and done(admin.get(f"/mails/{mail}"))["attributes"]["status"] == "queued"
    finally:
        server.stop()


def test_should_try_again_what_a_server_did_not_take_and_fail_what_it_never_will(new_keiko):
    server = MailServer(free_port())
    try:
        keiko = smtp(new_keiko, f"smtp://127.0.0.1:{server.listener.port}?tls=none").start()
        admin, to = keiko.login(), address()
        server.answers = ["451 come back later"]
        first = invite(admin, to)["id"]
        assert len(server.to(to)) == 1
        until(lambda: done(admin.get(f"/mails/{first}"))["attributes"]["status"] == "sent", "it is sent")
        never = address()
        server.answers = [f"550 5.1.1 <{never}> no such user here"]
        second = invite(admin, never)["id"]
        failed = until(lambda: (shown := done(admin.get(f"/mails/{second}"))["attributes"])["status"] == "failed" and shown, "it failed")
        assert "550 5.1.1" in failed["failure"] and failed["email"] is None
        assert never not in str(admin.events()) and never not in keiko.logs(), "what a server says about an address stays there"
        time.sleep(0.5)
        assert [to for _, [to], _ in server.mails] == [to]
    finally:
        server.stop()


def test_should_send_what_was_queued_when_it_was_killed(new_keiko):
    port = free_port()
    keiko = smtp(new_keiko, f"smtp://127.0.0.1:{port}?tls=none").start()
    admin, addresses = keiko.login(), [address() for _ in range(5)]
    for to in addresses:
        invite(admin, to)
    until(lambda: "could not be handed over" in keiko.logs(), "it was tried")
    keiko.kill()
    server = MailServer(port)
    try:
        keiko.start()
        for to in addresses:
            assert len(server.to(to)) == 1
        done(join(keiko.client(), server.to(addresses[0])[0]), 201)
        queued = lambda: {m["attributes"]["status"] for m in keiko.login().everything("/mails")}  # noqa: E731
        until(lambda: "queued" not in queued(), "all went out")
    finally:
        server.stop()


@pytest.mark.embedded
@pytest.mark.parametrize("env,words", [
    ({"KEIKO_MAIL_SMTP_URL": "smtp://keiko:hunter22@127.0.0.1?tls=none", "KEIKO_MAIL_FROM": "keiko@example.com"}, "password without TLS"),
    ({"KEIKO_MAIL_SMTP_URL": "smtps://keiko:hunter22@127.0.0.1"}, "needs 'mail.from'"),
    ({"KEIKO_MAIL_SMTP_URL": "smtps://keiko:hunter22@127.0.0.1", "KEIKO_MAIL_FROM": "nonsense"}, "mail.from"),
    ({"KEIKO_MAIL_SMTP_URL": "smtps://127.0.0.1", "KEIKO_MAIL_FROM": "a@b.example", "KEIKO_MAIL_TLS_CA": "nowhere.pem"}, "nowhere.pem"),
    ({"KEIKO_USERS_REGISTRATION": "open", "KEIKO_MAIL_FOLDER": "off"}, "no mail goes out"),
    ({"KEIKO_USERS_REGISTRATION": "everybody"}, "closed, invited, open"),
    ({"KEIKO_USERS_REGISTRATION_ROLES": "admin"}, "everybody an administrator"),
])
def test_should_name_what_is_wrong_with_the_settings(new_keiko, env, words):
    from harness import StartFailed

    with pytest.raises(StartFailed) as failed:
        new_keiko(env=env).start()
    assert words in failed.value.output and "hunter22" not in failed.value.output
