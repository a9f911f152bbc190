//! What strangers, senders with a secret, upstreams and other users of the machine try with the inbox, and get nowhere.

use super::stage::{SECRET, configuration, number, source, store, upstream};
use crate::support::gateway::{Folder, hookward};
use crate::support::{Gateway, Reply, Request, Upstream, eventually, sign};
use std::sync::Arc;

fn start(inbox: &str, rest: &str) -> Gateway {
    Gateway::start_in(Arc::default(), &configuration(inbox, rest))
}

fn signed(target: &str, body: &str) -> Request {
    Request::post(target, body)
        .header("X-Hub-Signature-256", sign::github(SECRET, body.as_bytes()))
        .header("X-GitHub-Delivery", sign::github("an id", body.as_bytes()))
        .header("X-GitHub-Event", "push")
}

fn has(folder: &Folder, needle: &str) -> bool {
    let within = |file: Vec<u8>| file.windows(needle.len()).any(|window| window == needle.as_bytes());
    ["inbox.db", "inbox.db-wal"].iter().any(|name| std::fs::read(store(folder).with_file_name(name)).is_ok_and(within))
}

#[test]
fn a_sender_chooses_neither_the_key_that_receivers_tell_repetitions_by_nor_the_number_of_the_attempt() {
    let app = Upstream::start();
    let gateway = start("", &format!("{}{}", upstream("app", &app, ""), source("shop", "app", "")));
    let mut request = signed("/shop", "{}");
    for name in ["Idempotency-Key", "Idempotency_Key", "idempotency.key"] {
        request = request.header(name, "github:somebody-elses");
    }
    for name in ["X-Hookward-Attempt", "X_Hookward_Attempt", "X.Hookward.Attempt", "X_Hookward-Verified"] {
        request = request.header(name, "9");
    }
    assert_eq!(request.send(gateway.public()).status, 202);
    let received = app.wait_for(1).remove(0);
    let folded = |name: &str| {
        let fold = |name: &str| name.to_ascii_lowercase().replace(['_', '.'], "-");
        let those = received.headers.iter().filter(|(other, _)| fold(other) == name);
        those.map(|(_, value)| String::from_utf8_lossy(value).into_owned()).collect::<Vec<_>>()
    };
    assert_eq!(folded("x-hookward-attempt"), ["1"]);
    assert_eq!(folded("x-hookward-verified"), ["github"]);
    let keys = folded("idempotency-key");
    assert!(keys.len() == 1 && keys[0].starts_with("shop:"), "{keys:?}");
}

/// Its second upstream has a path of its own, which is kept beside what is encrypted.
#[test]
fn with_a_key_no_header_query_or_body_can_be_read_from_the_files_and_every_upstream_has_them_whole() {
    let (app, audit) = (Upstream::start(), Upstream::start());
    let routes = "[[sources.shop.routes]]\nupstream = \"app\"\n\
        [[sources.shop.routes]]\nupstream = \"audit\"\nupstream_path = \"/of-its-own\"\n";
    let upstreams = format!("{}{}", upstream("app", &app, ""), upstream("audit", &audit, ""));
    let text = format!("{upstreams}{}", source("shop", "app", routes));
    let sent = || {
        signed("/shop?token=a-query-marker", r#"{"card":"a-body-marker"}"#)
            .header("Authorization", "Bearer a-header-marker")
    };
    let markers = ["a-query-marker", "a-body-marker", "a-header-marker"];
    let key = format!("encryption_key = {{ value = \"{}\" }}", "0123456789abcdef".repeat(4));
    for (inbox, is_readable) in [(&*key, false), ("", true)] {
        let before = audit.count();
        let gateway = start(inbox, &text);
        assert_eq!(sent().send(gateway.public()).status, 202);
        let received = audit.wait_for(before + 1).remove(before);
        assert_eq!(received.target, "/of-its-own?token=a-query-marker");
        assert_eq!(app.wait_for(before + 1)[before].target, "/shop?token=a-query-marker");
        for marker in markers {
            assert_eq!(has(&gateway.folder, marker), is_readable, "{marker} with {inbox:?}");
        }
    }
}

#[test]
fn after_a_restart_a_path_of_its_own_has_the_query_still() {
    let closed = crate::support::upstream::ClosedPort::new();
    let (app, url) = (Upstream::start(), format!("http://{}", closed.address()));
    let routes = "retry = { attempts = 1000, first = \"10ms\", max = \"10ms\" }\n\
        [[sources.shop.routes]]\nupstream = \"app\"\n\
        [[sources.shop.routes]]\nupstream = \"down\"\nupstream_path = \"/of-its-own\"\n";
    let text = format!(
        "{}\n[upstreams.down]\nurls = [\"{url}\"]\n{}",
        upstream("app", &app, ""),
        source("shop", "app", routes)
    );
    let gateway = start("", &text);
    assert_eq!(signed("/shop?a=1?b", "{}").send(gateway.public()).status, 202);
    app.wait_for(1);
    let folder = gateway.kill();
    let down = closed.open(|_, _| Reply::Status(200));
    let _gateway = Gateway::start_in(folder, &configuration("", &text));
    assert_eq!(down.wait_for(1)[0].target, "/of-its-own?a=1?b");
}

#[test]
fn an_upstream_cannot_park_a_delivery_with_an_absurd_retry_after_and_its_endless_answer_ends() {
    let absurd: Vec<&str> = vec!["99999999999999999999999999", "18446744073709551615", "Fri, 31 Dec 9999 23:59:59 GMT"];
    for asked in absurd {
        let app = Upstream::with(move |_, _| Reply::Full {
            status: 503,
            headers: vec![("Retry-After", asked)],
            body: vec![b'x'; 1 << 20],
        });
        let gateway = start("", &format!("{}{}", upstream("app", &app, ""), source("shop", "app", "")));
        assert_eq!(signed("/shop", "{}").send(gateway.public()).status, 202);
        let made = || number(&gateway.folder, "SELECT max(attempts) FROM tasks");
        eventually("an attempt is written down", || (made() == 1).then_some(()));
        let left = number(&gateway.folder, "SELECT due - strftime('%s', 'now') * 1000 FROM tasks");
        assert!((0..=86_401_000).contains(&left), "{asked}: {left} ms");
        assert_eq!(number(&gateway.folder, "SELECT length(note) < 200 FROM tasks"), 1);
    }
}

/// The owner of the folder may have put any link there.
#[test]
fn root_does_not_salvage_what_belongs_to_another_user() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let app = Upstream::start();
    let text = format!("{}{}", upstream("app", &app, ""), source("shop", "app", ""));
    let gateway = start("", &text);
    assert_eq!(signed("/shop", "{}").send(gateway.public()).status, 202);
    let folder = gateway.kill();
    let salvage = ["inbox", "salvage", "--config", "gateway.toml"];
    std::os::unix::fs::chown(folder.path("inbox"), Some(12_345), None).expect("root may");
    let (code, _, why) = hookward(&folder.path("."), &salvage);
    assert_eq!(code, 1, "{why}");
    assert!(why.contains("belongs to user 12345") && why.contains("sudo -u '#12345'"), "{why}");
    assert!(!folder.path("inbox.salvaged").exists(), "nothing was made");
    std::os::unix::fs::chown(folder.path("inbox"), Some(0), None).expect("root may");
    let (code, out, why) = hookward(&folder.path("."), &salvage);
    assert_eq!(code, 0, "{out}{why}");
}
