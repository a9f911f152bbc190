//! An inbox each, and one state: what a gateway has stored is known to the others, whatever becomes of it and of Redis.

use super::stage::{SECRET, event, kept, state, wait_until_ready};
use crate::support::engines::Redis;
use crate::support::gateway::{Folder, PLAIN};
use crate::support::{Gateway, Upstream, eventually};
use std::collections::HashSet;
use std::sync::Arc;

#[test]
fn what_one_gateways_inbox_holds_is_refused_by_the_other_after_kill_9_and_a_redis_that_forgot() {
    let (mut redis, upstream) = (Redis::start(), Upstream::start());
    let text = format!(
        "{PLAIN}{}[inbox]\npath = \"inbox\"\n{}\n[sources.shop]\npath = \"/shop\"\nprovider = \"stripe\"\n\
         secrets = [{{ value = \"{SECRET}\" }}]\nupstream = \"app\"\ndelivery = \"inbox\"\n",
        state(&redis, "timeout = \"10s\""),
        upstream.table()
    );
    let start = |folder| {
        let gateway = Gateway::start_in(folder, &text);
        wait_until_ready(&gateway);
        gateway
    };
    let one = start(Arc::new(Folder::new()));
    let deliveries: Vec<_> = (0..10).map(|n| event("shop", &format!("evt_{n}"))).collect();
    for delivery in &deliveries {
        assert_eq!(delivery.send(one.public()).status, 202);
    }
    let folder = one.kill();
    // Nobody is left that remembers, but the inbox.
    redis.kill();
    redis.restart();
    let other = start(Arc::new(Folder::new()));
    let one = start(folder);
    eventually("the inbox has told Redis", || (kept(&redis, "shop") >= deliveries.len()).then_some(()));
    for gateway in [&other, &one] {
        for delivery in &deliveries {
            assert_eq!(delivery.send(gateway.public()).status, 409);
        }
    }
    let fresh = event("shop", "evt_new");
    assert_eq!(fresh.send(other.public()).status, 202);
    eventually("it is known to the other, once the inbox has told Redis", || match fresh.send(one.public()).status {
        409 => Some(()),
        503 => None,
        other => panic!("{other}"),
    });
    // One that was under way at the kill may come twice, and then under the same name.
    eventually("all are delivered", || {
        let received = upstream.received();
        let names: HashSet<_> = received.iter().map(|request| request.header("x-request-id")).collect();
        (names.len() == deliveries.len() + 1).then_some(())
    });
    let bodies: HashSet<_> = upstream.received().into_iter().map(|request| request.body).collect();
    assert_eq!(bodies.len(), deliveries.len() + 1);
}
