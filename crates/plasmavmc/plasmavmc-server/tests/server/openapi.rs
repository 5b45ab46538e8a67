//! The committed description of the interface is that of the code.

use std::path::Path;

#[test]
fn the_committed_openapi_file_is_fresh() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../openapi/plasmavmc.json");
    let actual = plasmavmc_server::openapi_json().unwrap();
    let update = std::env::var_os("UPDATE_EXPECT").is_some();
    if update {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, &actual).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        committed == actual,
        "openapi/plasmavmc.json is stale; run this test with UPDATE_EXPECT=1"
    );
}
