//! What a link promises, with real servers.

use std::time::Duration;

use redis::Value;

use super::Link;
use super::testing::Redis;

const SOON: Duration = Duration::from_secs(2);

#[tokio::test]
async fn a_server_is_asked() {
    let redis = Redis::start();
    let link = Link::start(redis.settings()).unwrap();
    while !link.is_up() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let answer = link.ask(redis::cmd("SET").arg("a").arg("b"), SOON).await;
    assert_eq!(answer, Ok(Value::Okay));
    assert_eq!(redis.cli(&["GET", "a"]), Value::BulkString(b"b".to_vec()));
}
