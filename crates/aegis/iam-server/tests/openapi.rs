//! The committed OpenAPI document is the one that the router serves. `UPDATE_EXPECT=1 cargo test -p iam-server --test
//! openapi` writes it anew.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use expect_test::expect_file;

#[test]
fn the_committed_document_is_current() {
    let mut text = iam_server::api::openapi().to_pretty_json().unwrap();
    text.push('\n');
    expect_file!["../../../../openapi/aegis.json"].assert_eq(&text);
}
