//! An API server for one Node, as far as the agent can tell: list, watch, and strategic merge patches of its status.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;

use serde_json::{Value, json};

pub(crate) struct State {
    version: u64,
    pub(crate) node: Value,
    log: Vec<(u64, Value)>,
    /// Each patch that was taken: content type, query, body.
    pub(crate) patches: Vec<(String, String, Value)>,
    /// Statuses with which the next patches are answered.
    pub(crate) refusals: Vec<u16>,
}

#[derive(Clone)]
pub(crate) struct Api(Arc<(Mutex<State>, Condvar)>);

impl Api {
    /// A server with a Node `n1`; and its URL.
    pub(crate) fn start(node: Value) -> (Self, String) {
        let state =
            State { version: 0, node: json!({}), log: Vec::new(), patches: Vec::new(), refusals: Vec::new() };
        let api = Self(Arc::new((Mutex::new(state), Condvar::new())));
        api.put(node);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let served = api.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let served = served.clone();
                // A client that goes ends its conversation.
                thread::spawn(move || served.talk(&stream));
            }
        });
        (api, url)
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.0.0.lock().unwrap()
    }

    /// Replaces the Node.
    pub(crate) fn put(&self, node: Value) {
        self.state().put(node);
        self.0.1.notify_all();
    }

    /// `status` of the condition of a type.
    pub(crate) fn condition(&self, kind: &str) -> Option<Value> {
        let state = self.state();
        let conditions = state.node["status"]["conditions"].as_array()?;
        conditions.iter().find(|condition| condition["type"] == kind).cloned()
    }

    fn talk(&self, stream: &TcpStream) -> std::io::Result<()> {
        let mut reader = BufReader::new(stream);
        loop {
            let mut head = Vec::new();
            loop {
                let mut line = String::new();
                if reader.read_line(&mut line)? == 0 {
                    return Ok(());
                }
                if line.trim().is_empty() {
                    break;
                }
                head.push(line.trim().to_owned());
            }
            let header = |name: &str| {
                let of = |line: &&String| line.to_lowercase().starts_with(&format!("{name}:"));
                head.iter().find(of).and_then(|line| line.split_once(": ")).map(|(_, value)| value.to_owned())
            };
            let mut body = vec![0; header("content-length").map_or(0, |length| length.parse().unwrap())];
            reader.read_exact(&mut body)?;
            let words: Vec<_> = head[0].split(' ').collect();
            let (path, query) = words[1].split_once('?').unwrap_or((words[1], ""));
            match (words[0], path) {
                ("GET", "/api/v1/nodes") if query.contains("watch=true") => return self.watch(stream, query),
                ("GET", "/api/v1/nodes") => {
                    assert!(query.contains("fieldSelector=metadata.name%3Dn1"), "{query}");
                    let state = self.state();
                    let list = json!({"kind": "NodeList", "apiVersion": "v1", "items": [state.node],
                        "metadata": {"resourceVersion": state.version.to_string()}});
                    answer(stream, 200, &list)?;
                }
                ("PATCH", "/api/v1/nodes/n1/status") => {
                    let body = serde_json::from_slice(&body).unwrap();
                    let kind = header("content-type").unwrap_or_default();
                    let (code, node) = self.state().patch(kind, query.to_owned(), body);
                    self.0.1.notify_all();
                    answer(stream, code, &node)?;
                }
                _ => answer(stream, 404, &json!({"kind": "Status", "code": 404, "message": path}))?,
            }
        }
    }

    fn watch(&self, mut stream: &TcpStream, query: &str) -> std::io::Result<()> {
        let version = query.split('&').find_map(|pair| pair.strip_prefix("resourceVersion=")).unwrap();
        let mut told: u64 = version.parse().unwrap();
        stream.write_all(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n",
        )?;
        loop {
            let lines: Vec<String> = {
                let state = self.0.1.wait_while(self.state(), |state| state.version <= told).unwrap();
                let new = state.log.iter().filter(|(version, _)| *version > told);
                let lines =
                    new.map(|(_, node)| json!({"type": "MODIFIED", "object": node}).to_string() + "\n");
                let lines = lines.collect();
                told = state.version;
                lines
            };
            for line in lines {
                write!(stream, "{:x}\r\n{line}\r\n", line.len())?;
            }
        }
    }
}

impl State {
    fn put(&mut self, mut node: Value) {
        self.version += 1;
        node["apiVersion"] = "v1".into();
        node["kind"] = "Node".into();
        node["metadata"]["name"] = "n1".into();
        node["metadata"]["resourceVersion"] = self.version.to_string().into();
        self.node = node.clone();
        self.log.push((self.version, node));
    }

    /// K8S: conditions have `type` as their merge key; of each, fields are merged.
    fn patch(&mut self, kind: String, query: String, body: Value) -> (u16, Value) {
        if let Some(code) = self.refusals.pop() {
            return (
                code,
                json!({"kind": "Status", "status": "Failure", "message": "refused", "reason": "Forbidden", "code": code}),
            );
        }
        let mut node = self.node.clone();
        for condition in body["status"]["conditions"].as_array().unwrap() {
            let conditions = node["status"]["conditions"].as_array_mut().unwrap();
            match conditions.iter_mut().find(|found| found["type"] == condition["type"]) {
                Some(found) => found.as_object_mut().unwrap().extend(condition.as_object().unwrap().clone()),
                None => conditions.push(condition.clone()),
            }
        }
        self.patches.push((kind, query, body));
        self.put(node.clone());
        (200, node)
    }
}

fn answer(mut stream: &TcpStream, code: u16, body: &Value) -> std::io::Result<()> {
    let body = body.to_string();
    write!(
        stream,
        "HTTP/1.1 {code} X\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}
