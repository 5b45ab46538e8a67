// npm's package etcd3, unmodified, against the servers named on the command line, over TLS.
//
// `node tour.js https://HOST:PORT[,..] CA CERT KEY` prints one line for each step that passed and ends with a non-zero
// code at the first that did not. The last step switches the users and roles of the servers on and off again, so they
// must be the test's own.
"use strict";

const assert = require("node:assert/strict");
const fs = require("node:fs");
const { Etcd3, Range } = require("etcd3");

const STEP_MS = 30000;

const [hosts, ca, cert, key] = process.argv.slice(2);
const credentials = {
  rootCertificate: fs.readFileSync(ca),
  certChain: fs.readFileSync(cert),
  privateKey: fs.readFileSync(key),
};

function connect(auth) {
  return new Etcd3({ hosts: hosts.split(","), credentials, auth });
}

// The first `count` calls of an event's handlers, as arrays of their arguments.
function events(emitter, names, count) {
  return new Promise((resolve, reject) => {
    const seen = [];
    for (const name of names) {
      emitter.on(name, (...args) => {
        seen.push([name, ...args]);
        if (seen.length === count) resolve(seen);
      });
    }
    emitter.on("error", reject);
  });
}

async function keys(client) {
  assert.equal(await client.get("k/none"), null);
  await client.put("k/a").value("1");
  assert.equal(await client.get("k/a").string(), "1");
  await client.put("k/b").value(2);
  assert.equal(await client.get("k/b").number(), 2);
  await client.put("k/c").value(JSON.stringify({ x: 3 }));
  assert.deepEqual(await client.get("k/c").json(), { x: 3 });
  assert.equal(await client.get("k/a").exists(), true);
  const bytes = Buffer.from([0, 255, 1]);
  await client.put("k/bytes").value(bytes);
  assert.deepEqual(await client.get("k/bytes").buffer(), bytes);
  const before = await client.put("k/a").value("9").getPrevious();
  assert.equal(before.value.toString(), "1");
  const old = await client.get("k/a").revision(before.mod_revision).string();
  assert.equal(old, "1");
  await client.put("k/a").touch();
  assert.equal(await client.get("k/a").string(), "9");
  const gone = await client.delete().key("k/b").exec();
  assert.equal(gone.deleted, "1");
  const last = await client.delete().key("k/c").getPrevious();
  assert.equal(last[0].value.toString(), '{"x":3}');
}

async function ranges(client) {
  for (const n of [3, 1, 2]) await client.put(`r/${n}`).value(`v${n}`);
  assert.deepEqual(await client.getAll().prefix("r/").strings(), { "r/1": "v1", "r/2": "v2", "r/3": "v3" });
  assert.deepEqual(await client.getAll().prefix("r/").sort("Key", "Descend").limit(2).keys(), ["r/3", "r/2"]);
  assert.equal(await client.getAll().prefix("r/").count(), 3);
  const between = await client.getAll().inRange({ start: "r/1", end: "r/3" }).keys();
  assert.deepEqual(between.sort(), ["r/1", "r/2"]);
  const page = await client.getAll().prefix("r/").limit(1).exec();
  assert.equal(page.more, true);
  assert.equal(page.count, "3");
  await assert.rejects(client.get("r/1").revision(1 << 30).string(), /required revision is a future revision/);
  assert.equal((await client.delete().prefix("r/").exec()).deleted, "3");
}

async function transactions(client) {
  const create = (value) =>
    client
      .if("t/a", "Create", "==", 0)
      .then(client.put("t/a").value(value))
      .else(client.get("t/a"))
      .commit();
  assert.equal((await create("first")).succeeded, true);
  const second = await create("second");
  assert.equal(second.succeeded, false);
  assert.equal(second.responses[0].response_range.kvs[0].value.toString(), "first");
  const both = await client
    .if("t/a", "Value", "==", "first")
    .and("t/a", "Version", "<", 2)
    .then(client.put("t/a").value("third"), client.get("t/a"), client.delete().key("t/none"))
    .commit();
  assert.equal(both.succeeded, true);
  assert.equal(both.responses[1].response_range.kvs[0].value.toString(), "third");
  const twice = client.if("t/a", "Version", ">", 0).then(client.put("t/x").value("1"), client.put("t/x").value("2"));
  await assert.rejects(twice.commit(), /duplicate key given in txn request/);
  // The client's software transactional memory: both add, none is lost.
  await client.put("t/sum").value("0");
  const add = () =>
    client.stm({ retries: 50 }).transact(async (tx) => {
      const now = Number(await tx.get("t/sum"));
      await tx.put("t/sum").value(String(now + 1));
    });
  await Promise.all(Array.from({ length: 5 }, add));
  assert.equal(await client.get("t/sum").string(), "5");
}

async function watches(client) {
  const first = await client.put("w/a").value("1").exec();
  const watcher = await client
    .watch()
    .prefix("w/")
    .withPreviousKV()
    .startRevision(first.header.revision)
    .create();
  const seen = events(watcher, ["put", "delete"], 3);
  await client.put("w/a").value("2");
  await client.put("elsewhere").value("x");
  await client.delete().key("w/a");
  const plain = (await seen).map(([name, kv, before]) => [name, kv.value.toString(), before && before.value.toString()]);
  assert.deepEqual(plain.map((one) => one.slice(0, 2)), [["put", "1"], ["put", "2"], ["delete", ""]]);
  assert.deepEqual(plain.slice(1).map((one) => one[2]), ["1", "2"]);
  await watcher.cancel();
  const deletes = await client.watch().prefix("w/").only("delete").create();
  const only = events(deletes, ["put", "delete"], 1);
  await client.put("w/b").value("1");
  await client.delete().key("w/b");
  assert.equal((await only)[0][0], "delete");
  await deletes.cancel();
}

async function leases(client) {
  const lease = client.lease(2);
  const kept = events(lease, ["keepaliveSucceeded"], 2);
  await lease.put("l/kept").value("x");
  const left = await client.leaseClient.leaseTimeToLive({ ID: await lease.grant(), keys: true });
  assert.equal(left.grantedTTL, "2");
  assert.deepEqual(left.keys.map(String), ["l/kept"]);
  // The second renewal comes after more than a time to live has gone by without one.
  await kept;
  await new Promise((done) => setTimeout(done, 2500));
  assert.equal(await client.get("l/kept").string(), "x");
  await lease.revoke();
  assert.equal(await client.get("l/kept").string(), null);
  const short = client.lease(1, { autoKeepAlive: false });
  await short.put("l/short").value("y");
  const gone = await client.watch().key("l/short").create();
  const ended = events(gone, ["delete"], 1);
  if ((await client.get("l/short").string()) !== null) await ended;
  await gone.cancel();
  assert.equal(await client.get("l/short").string(), null);
  await assert.rejects(short.keepaliveOnce(), /lease/i);
}

async function locks(client) {
  const first = client.lock("mutex").ttl(10);
  await first.acquire();
  await assert.rejects(client.lock("mutex").ttl(10).acquire(), /Failed to acquire a lock/);
  await first.release();
  assert.equal(await client.lock("mutex").ttl(10).do(() => "held"), "held");
}

async function elections(client) {
  const election = client.election("post", 10);
  const one = election.campaign("one");
  await one.wait();
  assert.equal(await election.leader(), "one");
  const observer = await election.observe();
  assert.equal(observer.leader(), "one");
  const two = election.campaign("two");
  const elected = two.wait();
  await one.proclaim("uno");
  assert.equal(await election.leader(), "uno");
  await one.resign();
  await elected;
  assert.equal(await election.leader(), "two");
  await two.resign();
  await observer.cancel();
}

async function namespaces(client) {
  const inner = client.namespace("n/");
  await inner.put("a").value("1");
  assert.equal(await client.get("n/a").string(), "1");
  assert.deepEqual(await inner.getAll().strings(), { a: "1" });
  const deeper = inner.namespace("m/");
  await deeper.put("b").value("2");
  assert.deepEqual((await inner.getAll().keys()).sort(), ["a", "m/b"]);
  const watcher = await inner.watch().key("a").create();
  const seen = events(watcher, ["put"], 1);
  await client.put("n/a").value("3");
  assert.equal((await seen)[0][1].key.toString(), "a");
  await watcher.cancel();
  assert.equal(await inner.lock("x").do(async () => (await client.getAll().prefix("n/x").keys()).length), 1);
  assert.equal((await inner.delete().all().exec()).deleted, "2");
}

async function cluster(client) {
  const list = await client.cluster.memberList({});
  assert.equal(list.members.length, hosts.split(",").length);
  const status = await client.maintenance.status();
  assert.match(status.version, /^3\./);
  assert.notEqual(status.leader, "0");
  assert.deepEqual((await client.maintenance.alarm({ action: "Get", memberID: 0, alarm: "None" })).alarms, []);
  assert.notEqual((await client.maintenance.hash()).hash, 0);
}

async function users(client) {
  const role = await client.role("reader").create();
  await role.grant({ permission: "Read", range: Range.prefix("u/") });
  assert.equal((await role.permissions())[0].permission, "Read");
  const alice = await client.user("alice").create("secret");
  await alice.addRole(role);
  const root = await client.user("root").create("toor");
  await client.role("root").create();
  await root.addRole("root");
  assert.deepEqual((await client.getUsers()).map((user) => user.name).sort(), ["alice", "root"]);
  await client.put("u/a").value("1");
  await client.auth.authEnable();
  const admin = connect({ username: "root", password: "toor" });
  try {
    const reader = connect({ username: "alice", password: "secret" });
    assert.equal(await reader.get("u/a").string(), "1");
    await assert.rejects(reader.put("u/a").value("2").exec(), /permission denied/);
    await assert.rejects(reader.get("elsewhere").string(), /permission denied/);
    reader.close();
    const wrong = connect({ username: "alice", password: "guessed" });
    await assert.rejects(wrong.get("u/a").string(), /authentication failed, invalid user ID or password/);
    wrong.close();
    await admin.put("u/a").value("3");
  } finally {
    await admin.auth.authDisable();
  }
  admin.close();
  assert.equal(await client.get("u/a").string(), "3");
}

async function main() {
  const client = connect();
  for (const step of [keys, ranges, transactions, watches, leases, locks, elections, namespaces, cluster, users]) {
    let timer;
    const late = new Promise((_, reject) => {
      timer = setTimeout(() => reject(new Error(`no end after ${STEP_MS} ms`)), STEP_MS);
    });
    try {
      await Promise.race([step(client), late]);
    } catch (error) {
      console.error(`${step.name}:`, error);
      process.exit(1);
    } finally {
      clearTimeout(timer);
    }
    console.log(`ok ${step.name}`);
  }
  client.close();
}

main();
