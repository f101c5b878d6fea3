-- SPDX-License-Identifier: Apache-2.0
PRAGMA journal_mode = WAL;
CREATE TABLE item(id INTEGER PRIMARY KEY, kind INTEGER, name TEXT, price REAL);
CREATE TABLE sale(item INTEGER, day INTEGER, count INTEGER);
BEGIN;
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000)
INSERT INTO item SELECT i, i % 37, printf('item %05d', (i * 7919) % 100003), i * 0.25 FROM n;
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 30000)
INSERT INTO sale SELECT (i * 104729) % 20000 + 1, i % 365, i % 9 FROM n;
COMMIT;
CREATE INDEX by_name ON item(name);
CREATE INDEX by_day ON sale(day, item);
SELECT kind, count(*), sum(price * count), max(name) FROM item JOIN sale ON item.id = sale.item
GROUP BY kind ORDER BY 3 DESC LIMIT 5;
SELECT count(*) FROM item WHERE name LIKE '%77%';
SELECT a.day, count(*) FROM sale a JOIN sale b ON a.item = b.item AND a.day < b.day
GROUP BY a.day ORDER BY 2 DESC, 1 LIMIT 3;
UPDATE sale SET count = count + 1 WHERE day BETWEEN 100 AND 200;
DELETE FROM item WHERE kind = 3;
SELECT sum(count), (SELECT count(*) FROM item) FROM sale;
PRAGMA integrity_check;
