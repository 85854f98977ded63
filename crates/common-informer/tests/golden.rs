//! Golden cases: the smallest objects, and who serves the Service `shop/web` as node `n1` sees it, and why.
//!
//! Each folder of `tests/golden` has `case.md` (what it pins, and why), `objects.yaml` and `expect.txt`.
//! `UPDATE_GOLDEN=1` rewrites the expectations; read the difference before you commit it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a broken test ends in a panic")]

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use common_informer::decode::ServiceDetail;
use common_informer::endpoints::{Place, Slices, explain};
use common_informer::intern::Interner;
use common_informer::manifests::parse_with;
use common_informer::object::{Change, Object};

fn explanation_of(yaml: &str) -> String {
    let documents = parse_with(ServiceDetail::Full, yaml, &mut Interner::new());
    assert_eq!(documents.malformed, [""; 0]);
    let (mut place, mut service, mut slices) = (None, None, Slices::new());
    let mut text = String::new();
    for decoded in documents.objects {
        let decoded = decoded.unwrap();
        for note in decoded.notes {
            text.push_str(&format!("{} read in part: {note}\n", decoded.object.object_ref()));
        }
        match &decoded.object {
            Object::Node(node) => {
                place = Some(Place { node: node.name.clone(), zone: node.zone.clone() });
            }
            Object::FullService(object) => service = Some(object.clone()),
            _ => slices.apply(&Change::Applied(decoded.object), &mut BTreeSet::new()),
        }
    }
    let service = service.unwrap();
    text + &explain(&service, "kube-router", &place.unwrap(), slices.of(&service.key))
}

#[test]
fn every_golden_case_has_the_expected_explanation() {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut cases: Vec<_> = fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path()).collect();
    cases.sort();
    assert!(cases.len() >= 20, "golden cases are missing");
    let mut wrong = Vec::new();
    for case in cases {
        let text = explanation_of(&fs::read_to_string(case.join("objects.yaml")).unwrap());
        let expected = case.join("expect.txt");
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            fs::write(&expected, &text).unwrap();
        } else if fs::read_to_string(&expected).unwrap_or_default() != text {
            wrong.push(format!("{}: is now\n{text}", case.display()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
