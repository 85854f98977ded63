use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use tempfile::TempDir;
use tokio::time::timeout;

use super::document::parse_json;
use super::*;
use crate::decode::ServiceDetail;
use crate::informer::{Informer, Source};
use crate::intern::Interner;
use crate::object::{Change, Object, ObjectRef};

/// Bound of every wait: far above what anything takes, since the machine may be busy. Below [`AUDIT`], which would find
/// what a notification has missed.
const LIMIT: Duration = Duration::from_secs(25);
const KINDS: [Kind; 2] = [Kind::Pod, Kind::NetworkPolicy];

fn pod(name: &str, node: &str) -> String {
    format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec: {{nodeName: {node}}}\n")
}

/// What a consumer knows: for each object the node of the pod, or why it is excluded.
struct Consumer {
    informer: Informer,
    objects: BTreeMap<String, String>,
}

impl Consumer {
    async fn start(directory: &Path) -> Self {
        let informer = Informer::start(&Source::Manifests(directory.to_owned()), &KINDS).await.unwrap();
        let mut consumer = Self { informer, objects: BTreeMap::new() };
        while !consumer.batch().await {}
        consumer
    }

    /// Takes one batch; whether the informer is in sync.
    async fn batch(&mut self) -> bool {
        let batch = timeout(LIMIT, self.informer.next()).await.expect("a batch").unwrap();
        for change in batch.changes {
            let name = change.object_ref().to_string();
            match change {
                Change::Applied(Object::Pod(pod)) => {
                    self.objects.insert(name, pod.node.as_deref().unwrap_or("-").to_owned());
                }
                Change::Applied(_) => {
                    self.objects.insert(name, "applied".to_owned());
                }
                Change::Excluded { .. } => {
                    self.objects.insert(name, "excluded".to_owned());
                }
                Change::Deleted(_) => {
                    self.objects.remove(&name).expect("only what is known is deleted");
                }
            }
        }
        batch.synced
    }

    /// Takes batches until these are the objects.
    async fn until(&mut self, expected: &[(&str, &str)]) {
        let expected: BTreeMap<String, String> = expected
            .iter()
            .map(|(name, value)| (format!("Pod default/{name}"), (*value).to_owned()))
            .collect();
        while self.objects != expected {
            let before = self.objects.clone();
            if timeout(LIMIT, self.batch()).await.is_err() {
                panic!("expected {expected:?}, have {before:?}, {:?}", self.informer.status().snapshot());
            }
        }
    }

    fn faults(&self) -> Vec<String> {
        let faults = self.informer.status().snapshot().faults;
        faults.into_iter().map(|(place, fault)| format!("{place}: {fault}")).collect()
    }
}

#[tokio::test]
async fn nested_folders_multiple_documents_lists_and_json_are_read() {
    let directory = TempDir::new().unwrap();
    fs::create_dir_all(directory.path().join("a/b")).unwrap();
    fs::write(directory.path().join("two.yaml"), format!("{}---\n{}", pod("a", "n1"), pod("b", "n1")))
        .unwrap();
    fs::write(
        directory.path().join("a/b/list.yml"),
        "apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: Pod\n  metadata: {name: c}\n  spec: {}\n",
    )
    .unwrap();
    let list = r#"{"apiVersion":"v1","kind":"PodList","items":[{"metadata":{"name":"d"},"spec":{}}]}"#;
    fs::write(directory.path().join("a/list.json"), format!("{list}\n{list}")).unwrap();
    fs::write(directory.path().join("a/readme.txt"), "not: a manifest").unwrap();
    fs::write(directory.path().join("a/.hidden.yaml"), pod("hidden", "n1")).unwrap();
    let mut consumer = Consumer::start(directory.path()).await;
    consumer.until(&[("a", "n1"), ("b", "n1"), ("c", "-"), ("d", "-")]).await;
}

#[tokio::test]
async fn files_that_are_written_renamed_and_removed_are_noticed() {
    let directory = TempDir::new().unwrap();
    let path = |name: &str| directory.path().join(name);
    let mut consumer = Consumer::start(directory.path()).await;
    fs::write(path("a.yaml"), pod("a", "n1")).unwrap();
    consumer.until(&[("a", "n1")]).await;
    fs::write(path("a.yaml"), pod("a", "n2")).unwrap();
    consumer.until(&[("a", "n2")]).await;
    fs::write(path(".tmp"), pod("b", "n1")).unwrap();
    fs::rename(path(".tmp"), path("a.yaml")).unwrap();
    consumer.until(&[("b", "n1")]).await;
    fs::create_dir(path("new")).unwrap();
    consumer.until(&[("b", "n1")]).await;
    fs::write(path("new/c.yaml"), pod("c", "n1")).unwrap();
    consumer.until(&[("b", "n1"), ("c", "n1")]).await;
    fs::rename(path("new"), path("renamed")).unwrap();
    fs::remove_file(path("a.yaml")).unwrap();
    consumer.until(&[("c", "n1")]).await;
    fs::write(path("renamed/c.yaml"), pod("c", "n2")).unwrap();
    consumer.until(&[("c", "n2")]).await;
    fs::remove_dir_all(path("renamed")).unwrap();
    consumer.until(&[]).await;
}

#[tokio::test]
async fn two_changes_of_the_same_size_within_a_clock_tick_are_both_seen() {
    let directory = TempDir::new().unwrap();
    let mut consumer = Consumer::start(directory.path()).await;
    for round in 0..5 {
        let name = format!("n{round}");
        fs::write(directory.path().join("a.yaml"), pod("a", &name)).unwrap();
        consumer.until(&[("a", &name)]).await;
    }
}

#[tokio::test]
async fn swapped_data_link_of_a_config_map_changes_all_files_at_once() {
    let directory = TempDir::new().unwrap();
    let path = |name: &str| directory.path().join(name);
    for (version, node) in [("..1", "n1"), ("..2", "n2")] {
        fs::create_dir(path(version)).unwrap();
        fs::write(path(version).join("a.yaml"), pod("a", node)).unwrap();
        fs::write(path(version).join("b.yaml"), pod("b", node)).unwrap();
    }
    symlink("..1", path("..data")).unwrap();
    symlink("..data/a.yaml", path("a.yaml")).unwrap();
    symlink("..data/b.yaml", path("b.yaml")).unwrap();
    let mut consumer = Consumer::start(directory.path()).await;
    consumer.until(&[("a", "n1"), ("b", "n1")]).await;
    symlink("..2", path("..data_tmp")).unwrap();
    fs::rename(path("..data_tmp"), path("..data")).unwrap();
    consumer.batch().await;
    assert_eq!(consumer.objects.values().collect::<Vec<_>>(), ["n2", "n2"], "in one batch");
}

#[tokio::test]
async fn root_that_is_a_swapped_link_is_followed() {
    let directory = TempDir::new().unwrap();
    let path = |name: &str| directory.path().join(name);
    for version in ["v1", "v2"] {
        fs::create_dir(path(version)).unwrap();
        fs::write(path(version).join("a.yaml"), pod("a", version)).unwrap();
    }
    symlink("v1", path("current")).unwrap();
    let mut consumer = Consumer::start(&path("current")).await;
    consumer.until(&[("a", "v1")]).await;
    symlink("v2", path("next")).unwrap();
    fs::rename(path("next"), path("current")).unwrap();
    consumer.until(&[("a", "v2")]).await;
}

#[tokio::test]
async fn malformed_document_costs_only_itself_and_excludes_what_it_may_have_been() {
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("all.yaml");
    let text = |middle: &str| format!("{}---\n{middle}---\n{}", pod("a", "n1"), pod("c", "n1"));
    // As writers should, so that no half of it is ever seen.
    let replace = |text: String| {
        fs::write(directory.path().join(".new"), text).unwrap();
        fs::rename(directory.path().join(".new"), &file).unwrap();
    };
    replace(text(&pod("b", "n1")));
    let mut consumer = Consumer::start(directory.path()).await;
    consumer.until(&[("a", "n1"), ("b", "n1"), ("c", "n1")]).await;
    replace(text("kind: Pod\nmetadata: {name: [b\n"));
    consumer.until(&[("a", "n1"), ("b", "excluded"), ("c", "n1")]).await;
    let faults = consumer.faults();
    assert!(faults[0].contains("all.yaml: the document at line 5 is not YAML: "), "{faults:?}");
    replace(text(&pod("b", "n2")));
    consumer.until(&[("a", "n1"), ("b", "n2"), ("c", "n1")]).await;
    assert_eq!(consumer.faults(), Vec::<String>::new());
}

#[tokio::test]
async fn file_that_cannot_be_read_as_text_excludes_what_it_held() {
    let directory = TempDir::new().unwrap();
    fs::write(directory.path().join("a.yaml"), pod("a", "n1")).unwrap();
    let mut consumer = Consumer::start(directory.path()).await;
    consumer.until(&[("a", "n1")]).await;
    fs::write(directory.path().join("a.yaml"), b"kind: \xff\xfe").unwrap();
    consumer.until(&[("a", "excluded")]).await;
    fs::remove_file(directory.path().join("a.yaml")).unwrap();
    consumer.until(&[]).await;
}

#[tokio::test]
async fn object_in_two_files_is_taken_from_the_last_path_and_reported() {
    let directory = TempDir::new().unwrap();
    fs::write(directory.path().join("1.yaml"), pod("a", "n1")).unwrap();
    fs::write(directory.path().join("2.yaml"), pod("a", "n2")).unwrap();
    let mut consumer = Consumer::start(directory.path()).await;
    consumer.until(&[("a", "n2")]).await;
    let faults = consumer.faults();
    assert!(faults[0].contains("1.yaml: Pod default/a is overridden by "), "{faults:?}");
    fs::remove_file(directory.path().join("2.yaml")).unwrap();
    consumer.until(&[("a", "n1")]).await;
    assert_eq!(consumer.faults(), Vec::<String>::new());
}

#[tokio::test]
async fn missing_directory_is_an_error_at_start_and_an_outage_later() {
    let directory = TempDir::new().unwrap();
    let root = directory.path().join("manifests");
    let error = Informer::start(&Source::Manifests(root.clone()), &KINDS).await.err().unwrap();
    assert!(error.to_string().contains(&root.display().to_string()), "{error}");
    fs::create_dir(&root).unwrap();
    fs::write(root.join("a.yaml"), pod("a", "n1")).unwrap();
    let mut consumer = Consumer::start(&root).await;
    consumer.until(&[("a", "n1")]).await;
    fs::rename(&root, directory.path().join("elsewhere")).unwrap();
    let status = consumer.informer.status();
    let gone = async {
        while status.snapshot().kinds[&Kind::Pod].last_error.is_none() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(LIMIT, gone).await.expect("the outage is in the status");
    assert!(
        timeout(Duration::from_millis(400), consumer.informer.next()).await.is_err(),
        "nothing is deleted"
    );
    fs::create_dir(&root).unwrap();
    fs::write(root.join("b.yaml"), pod("b", "n1")).unwrap();
    consumer.until(&[("b", "n1")]).await;
    assert_eq!(status.snapshot().kinds[&Kind::Pod].last_error, None);
}

#[tokio::test]
async fn empty_directory_is_in_sync() {
    let directory = TempDir::new().unwrap();
    let mut informer =
        Informer::start(&Source::Manifests(directory.path().to_owned()), &KINDS).await.unwrap();
    informer.status().wait_synced(LIMIT).await.unwrap();
    let batch = informer.next().await.unwrap();
    assert!(batch.synced && batch.changes.is_empty());
}

#[tokio::test]
async fn link_that_leads_back_into_its_folder_ends() {
    let directory = TempDir::new().unwrap();
    symlink(".", directory.path().join("loop")).unwrap();
    fs::write(directory.path().join("a.yaml"), pod("a", "n1")).unwrap();
    let mut consumer = Consumer::start(directory.path()).await;
    consumer.until(&[("a", "n1")]).await;
}

fn names(documents: &Documents) -> Vec<String> {
    let name = |object: ObjectRef| object.key.name.to_string();
    documents.objects.iter().map(|decoded| name(decoded.as_ref().unwrap().object.object_ref())).collect()
}

#[test]
fn separators_comments_and_directives_are_understood() {
    let text = format!(
        "# a comment\n%YAML 1.2\n--- # first\n{}...\n---\n# nothing\n---\n\n--- \n{}---\n{{\"kind\": \"Other\"}}\n---\n",
        pod("a", "n1"),
        pod("b", "n1")
    );
    let documents = parse(&text, &mut Interner::new());
    assert_eq!(names(&documents), ["a", "b"]);
    assert_eq!(documents.malformed, Vec::<String>::new());
}

#[test]
fn separator_inside_a_block_scalar_with_indentation_is_text() {
    let text = format!("{}data: |\n  ---\n  text\n", pod("a", "n1"));
    assert_eq!(names(&parse(&text, &mut Interner::new())), ["a"]);
}

#[test]
fn documents_with_windows_line_ends_and_byte_order_mark_are_read() {
    let text = format!("\u{feff}{}---\n{}", pod("a", "n1"), pod("b", "n1")).replace('\n', "\r\n");
    assert_eq!(names(&parse(&text, &mut Interner::new())), ["a", "b"]);
}

#[test]
fn json_after_a_mistake_is_reported() {
    let documents = parse_json(
        ServiceDetail::Addresses,
        r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"a"},"spec":{}} {"kind": nonsense}"#,
        &mut Interner::new(),
    );
    assert_eq!(names(&documents), ["a"]);
    assert_eq!(documents.malformed.len(), 1, "{documents:?}");
    assert_eq!(
        parse_json(ServiceDetail::Addresses, " \n", &mut Interner::new()).malformed,
        Vec::<String>::new()
    );
    assert_eq!(parse_json(ServiceDetail::Addresses, "{\"a\":", &mut Interner::new()).malformed.len(), 1);
}
