//! The SQL that reads a catalog: one JSON object a row, in the form of [`Object`](crate::Object).
//!
//! Names come quoted where they need it, definitions come from `pg_get_*def`; both sides must run these with
//! `search_path = pg_catalog`, so that every name carries its schema. `d` holds what definitions are written from, `s` what is
//! stored, by which a thing that was not touched is recognised even where something that it names was renamed.

mod types;

use crate::catalog::FIRST_USER_OID;

/// An ACL as `[[grantee or null, grantor, privilege, grantable], ...]`, the default one spelt out.
pub(crate) fn acl(column: &str, kind: char, owner: &str) -> String {
    format!(
        "(select jsonb_agg(jsonb_build_array(case when x.grantee <> 0 then quote_ident(pg_get_userbyid(x.grantee)) end, \
           quote_ident(pg_get_userbyid(x.grantor)), x.privilege_type, x.is_grantable) order by x.place) \
         from aclexplode(coalesce({column}, acldefault('{kind}', {owner}))) with ordinality \
           as x(grantor, grantee, privilege_type, is_grantable, place))"
    )
}

/// What all objects have, as the beginning of a `jsonb_build_object`.
fn head(class: &str, oid: &str, kind: &str, schema: &str, name: &str) -> String {
    format!(
        "'class', '{class}', 'oid', {oid}::bigint, 'sub', 0, 'kind', {kind}, 'schema', {schema}, 'name', {name}, \
         'comment', obj_description({oid}, '{class}')"
    )
}

/// Objects that a user made, and not as a part of an extension.
fn made_by_user(class: &str, oid: &str) -> String {
    format!(
        "{oid} >= {FIRST_USER_OID} and not exists (select from pg_depend e where e.classid = '{class}'::regclass \
           and e.objid = {oid} and e.deptype = 'e')"
    )
}

const SCHEMA_OF: &str = "(select nspname::text from pg_namespace where oid =";

fn schema(oid: &str) -> String {
    format!("{SCHEMA_OF} {oid})")
}

fn owner(oid: &str) -> String {
    format!("'owner', quote_ident(pg_get_userbyid({oid}))")
}

/// Every query, with what it reads.
pub(crate) fn objects() -> Vec<String> {
    let mut queries = vec![schemas(), extensions()];
    queries.extend(types::types());
    queries.extend([relations(), columns(), defaults(), constraints(), indexes(), views(), sequences(), functions()]);
    queries.extend([
        triggers(),
        rules(),
        policies(),
        statistics(),
        collations(),
        casts(),
        operators(),
        event_triggers(),
    ]);
    queries.extend([publications(), default_privileges(), foreign_servers()]);
    queries
}

fn schemas() -> String {
    format!(
        "select jsonb_build_object({}, {}, 'acl', {}) from pg_namespace n \
         where (n.nspname = 'public' or {}) and n.nspname !~ '^pg_'",
        head("pg_namespace", "n.oid", "'schema'", "null", "n.nspname"),
        owner("n.nspowner"),
        acl("n.nspacl", 'n', "n.nspowner"),
        made_by_user("pg_namespace", "n.oid"),
    )
}

fn extensions() -> String {
    format!(
        "select jsonb_build_object({}, 'd', jsonb_build_object('schema', {}, 'version', x.extversion)) \
         from pg_extension x where x.oid >= {FIRST_USER_OID}",
        head("pg_extension", "x.oid", "'extension'", "null", "x.extname"),
        schema("x.extnamespace"),
    )
}

fn relations() -> String {
    format!(
        "select jsonb_build_object({}, {}, 'acl', {}, 'd', jsonb_build_object( \
           'persistence', c.relpersistence, 'options', c.reloptions, \
           'toast_options', (select o.reloptions from pg_class o where o.oid = c.reltoastrelid), \
           'access_method', (select quote_ident(m.amname) from pg_am m where m.oid = c.relam), \
           'tablespace', (select quote_ident(p.spcname) from pg_tablespace p where p.oid = c.reltablespace), \
           'replica_identity', c.relreplident, 'row_security', c.relrowsecurity, 'force_row_security', c.relforcerowsecurity, \
           'partition_key', case when c.relkind = 'p' then pg_get_partkeydef(c.oid) end, \
           'partition_bound', pg_get_expr(c.relpartbound, c.oid), \
           'of_type', case when c.reloftype <> 0 then format_type(c.reloftype, null) end, \
           'server', (select quote_ident(v.srvname) from pg_foreign_table f join pg_foreign_server v on v.oid = f.ftserver where f.ftrelid = c.oid), \
           'foreign_options', (select f.ftoptions from pg_foreign_table f where f.ftrelid = c.oid), \
           'parents', (select jsonb_agg(jsonb_build_array(format('%I.%I', {}, p.relname)) order by i.inhseqno) \
                       from pg_inherits i join pg_class p on p.oid = i.inhparent where i.inhrelid = c.oid)), \
           's', jsonb_build_object('partition_key', (select to_jsonb(k) from pg_partitioned_table k where k.partrelid = c.oid) - 'partdefid', \
           'parents', (select jsonb_agg(i.inhparent::bigint order by i.inhseqno) from pg_inherits i where i.inhrelid = c.oid))) \
         from pg_class c where c.relkind in ('r', 'p', 'f') and c.relpersistence <> 't' and {}",
        head(
            "pg_class",
            "c.oid",
            "case c.relkind when 'f' then 'foreign_table' else 'table' end",
            &schema("c.relnamespace"),
            "c.relname"
        ),
        owner("c.relowner"),
        acl("c.relacl", 'r', "c.relowner"),
        schema("p.relnamespace"),
        made_by_user("pg_class", "c.oid"),
    )
}

/// What rows of relation `c` that were there before column `a` was added have in it, as SQL: text, or null. To be used with
/// [`MISSING_IN_PARTITIONS`].
pub const MISSING: &str = "case when c.relispartition or c.relkind = 'p' then m.value \
     when a.atthasmissing then (a.attmissingval::text::text[])[1] end";

/// Joins `m`, which [`MISSING`] reads. A partitioned table has no rows, so that Postgres notes the value with its partitions; and a
/// partition that was rewritten since, or is newer, has none. A column is added to all of them at once, so they all get one value.
pub const MISSING_IN_PARTITIONS: &str = "left join (select pg_partition_root(p.attrelid) as root, p.attname, \
       case when count(distinct p.attmissingval::text) = 1 then (min(p.attmissingval::text)::text[])[1] end as value \
       from pg_attribute p join pg_class t on t.oid = p.attrelid and t.relispartition where p.atthasmissing group by 1, 2) m \
     on (c.relispartition or c.relkind = 'p') and m.root = pg_partition_root(c.oid) and m.attname = a.attname";

// Newer minors keep a version of their own among a column's options (`ATTRIBUTE_VERSION_ATTOPTION` of pg_attribute.h). Since 17 a
// partition's column has its identity from the parent, with whose sequence it gets it when it is attached. Since 18 a constraint with a
// name makes a column not null; Postgres gives it the usual one where nothing in the schema has that, as LIKE copies it to other tables. An identity's sequence has its column's type, unless LIKE copied it: then it is a bigint.
fn columns() -> String {
    format!(
        "select jsonb_build_object('class', 'pg_class', 'oid', c.oid::bigint, 'sub', a.attnum, \
           'kind', case when c.relkind in ('v', 'm') then 'view_column' else 'column' end, 'schema', null, 'name', a.attname, \
           'comment', col_description(c.oid, a.attnum), 'parent', jsonb_build_array('pg_class', c.oid::bigint, 0), \
           'owner', null, 'acl', case when a.attacl is not null then {} end, 'd', jsonb_build_object( \
           'type', format_type(a.atttypid, a.atttypmod), \
           'collation', (select format('%I.%I', {}, l.collname) from pg_collation l, pg_type b \
             where l.oid = a.attcollation and b.oid = a.atttypid and b.typcollation <> a.attcollation), \
           'not_null', a.attnotnull, 'not_null_name', quote_ident(k.conname), \
           'not_null_usual', k.conname = c.relname || '_' || a.attname || '_not_null' and not exists (select from pg_constraint o \
              where o.conname = k.conname and o.connamespace = k.connamespace and o.oid <> k.oid), 'generated', case when a.attgenerated <> '' then pg_get_expr(g.adbin, g.adrelid) end, \
           'virtual', a.attgenerated = 'v', \
           'storage', case when a.attstorage <> y.typstorage then case a.attstorage when 'p' then 'plain' when 'm' then 'main' \
              when 'x' then 'extended' else 'external' end end, \
           'default_storage', case y.typstorage when 'p' then 'plain' when 'm' then 'main' when 'x' then 'extended' else 'external' end, \
           'compression', case a.attcompression when 'p' then 'pglz' when 'l' then 'lz4' end, \
           'statistics', case when to_jsonb(a) ->> 'attstattarget' is null then -1 else (to_jsonb(a) ->> 'attstattarget')::int end, \
           'options', (select jsonb_agg(o order by o) from unnest(a.attoptions) o where o !~ '^pg_attver='), 'foreign_options', a.attfdwoptions, 'local', a.attislocal, 'inherited', a.attinhcount, \
           'missing', {MISSING}, \
           'identity', case when q.name is not null then case a.attidentity when 'a' then 'always' when 'd' then 'by default' end end, \
           'identity_name', q.name, 'identity_options', q.options, 'identity_type', q.type), \
           's', jsonb_build_object('type', jsonb_build_array(a.atttypid::bigint, a.atttypmod, a.attcollation::bigint), \
           'collation', a.attcollation::bigint, 'generated', case when a.attgenerated <> '' then g.adbin::text end)) \
         from pg_class c join pg_attribute a on a.attrelid = c.oid join pg_type y on y.oid = a.atttypid \
           left join pg_attrdef g on g.adrelid = a.attrelid and g.adnum = a.attnum \
           left join pg_constraint k on k.conrelid = a.attrelid and k.contype = 'n' and k.conkey = array[a.attnum] {MISSING_IN_PARTITIONS} \
           left join lateral (select format('%I.%I', {}, s.relname) as name, \
             format('start with %s increment by %s minvalue %s maxvalue %s cache %s%s', o.seqstart, o.seqincrement, o.seqmin, o.seqmax, o.seqcache, \
               case when o.seqcycle then ' cycle' else ' no cycle' end) as options, \
             case when o.seqtypid <> a.atttypid then format_type(o.seqtypid, null) end as type \
             from pg_depend e join pg_class s on s.oid = e.objid and s.relkind = 'S' join pg_sequence o on o.seqrelid = s.oid \
             where e.classid = 'pg_class'::regclass and e.refclassid = 'pg_class'::regclass and e.deptype = 'i' \
               and e.refobjid = a.attrelid and e.refobjsubid = a.attnum) q on true \
         where c.relkind in ('r', 'p', 'f', 'v', 'm') and c.relpersistence <> 't' and a.attnum > 0 and not a.attisdropped and {}",
        acl("a.attacl", 'c', "c.relowner"),
        schema("l.collnamespace"),
        schema("s.relnamespace"),
        made_by_user("pg_class", "c.oid"),
    )
}

fn defaults() -> String {
    format!(
        "select jsonb_build_object({}, 'parent', jsonb_build_array('pg_class', c.oid::bigint, a.attnum), \
           'd', jsonb_build_object('expression', pg_get_expr(f.adbin, f.adrelid), 'local', a.attislocal), 's', jsonb_build_object('expression', f.adbin::text)) \
         from pg_attrdef f join pg_class c on c.oid = f.adrelid join pg_attribute a on a.attrelid = f.adrelid and a.attnum = f.adnum \
         where a.attgenerated = '' and c.relpersistence <> 't' and {}",
        head("pg_attrdef", "f.oid", "'default'", "null", "a.attname"),
        made_by_user("pg_class", "c.oid"),
    )
}

fn constraints() -> String {
    format!(
        "select jsonb_build_object({}, 'parent', case when k.contypid <> 0 then jsonb_build_array('pg_type', k.contypid::bigint, 0) \
             else jsonb_build_array('pg_class', k.conrelid::bigint, 0) end, \
           'd', jsonb_build_object('definition', pg_get_constraintdef(k.oid), 'type', k.contype, 'valid', k.convalidated, \
             'deferrable', k.condeferrable, 'deferred', k.condeferred, 'local', k.conislocal, 'inherited', k.coninhcount, \
             'partition', exists (select from pg_class c where c.oid = k.conrelid and c.relispartition), \
             'domain', k.contypid <> 0, 'foreign_table', nullif(k.confrelid, 0)::bigint, 'parent_constraint', nullif(k.conparentid, 0)::bigint, \
             'options', (select i.reloptions from pg_class i where i.oid = k.conindid and k.contype in ('p', 'u', 'x')), \
             'clustered', (select i.indisclustered from pg_index i where i.indexrelid = k.conindid and k.contype in ('p', 'u', 'x')), \
             'replica_identity', (select i.indisreplident from pg_index i where i.indexrelid = k.conindid and k.contype in ('p', 'u', 'x')), \
             'tablespace', (select quote_ident(p.spcname) from pg_class i join pg_tablespace p on p.oid = i.reltablespace \
                 where i.oid = k.conindid and k.contype in ('p', 'u', 'x'))), \
           's', jsonb_build_object('definition', to_jsonb(k) - 'oid' - 'conname' - 'convalidated' - 'condeferrable' - 'condeferred' \
             - 'conislocal' - 'coninhcount' - 'connoinherit' - 'connamespace' - 'conparentid' - 'conindid')) \
         from pg_constraint k left join pg_class r on r.oid = k.conrelid \
         where k.contype in ('p', 'u', 'x', 'f', 'c') and coalesce(r.relpersistence, 'p') <> 't' \
           and not exists (select from pg_depend e where e.deptype = 'e' and ((e.classid = 'pg_class'::regclass and e.objid = k.conrelid) \
             or (e.classid = 'pg_type'::regclass and e.objid = k.contypid))) \
           and not exists (select from pg_constraint o where o.oid = k.conparentid and o.conrelid = k.conrelid) and {}",
        head(
            "pg_constraint",
            "k.oid",
            "case when k.contypid <> 0 then 'domain_constraint' else 'constraint' end",
            "null",
            "k.conname"
        ),
        made_by_user("pg_constraint", "k.oid"),
    )
}

fn indexes() -> String {
    format!(
        "select jsonb_build_object({}, 'parent', jsonb_build_array('pg_class', i.indrelid::bigint, 0), \
           'd', jsonb_build_object('definition', pg_get_indexdef(i.indexrelid), 'options', c.reloptions, 'unique', i.indisunique, \
             'clustered', i.indisclustered, 'replica_identity', i.indisreplident, 'valid', i.indisvalid, \
             'tablespace', (select quote_ident(p.spcname) from pg_tablespace p where p.oid = c.reltablespace), \
             'statistics', (select jsonb_agg(jsonb_build_array(a.attnum, a.attstattarget) order by a.attnum) from pg_attribute a \
                where a.attrelid = c.oid and a.attstattarget >= 0), \
             'parent_index', (select h.inhparent::bigint from pg_inherits h where h.inhrelid = c.oid)), \
           's', jsonb_build_object('definition', to_jsonb(i) - 'indexrelid' - 'indisclustered' - 'indisreplident' - 'indisvalid' \
              - 'indcheckxmin' - 'indisready' - 'indislive', 'options', c.reloptions)) \
         from pg_index i join pg_class c on c.oid = i.indexrelid join pg_class r on r.oid = i.indrelid \
         where r.relkind in ('r', 'p', 'm') and c.relpersistence <> 't' and {} \
           and not exists (select from pg_constraint k where k.conindid = i.indexrelid and k.contype in ('p', 'u', 'x'))",
        head("pg_class", "c.oid", "'index'", &schema("c.relnamespace"), "c.relname"),
        made_by_user("pg_class", "r.oid"),
    )
}

fn views() -> String {
    format!(
        "select jsonb_build_object({}, {}, 'acl', {}, \
           'd', jsonb_build_object('definition', pg_get_viewdef(c.oid), 'options', c.reloptions, 'populated', c.relispopulated, \
             'tablespace', (select quote_ident(p.spcname) from pg_tablespace p where p.oid = c.reltablespace), \
             'columns', (select jsonb_agg(jsonb_build_array(quote_ident(a.attname), format_type(a.atttypid, a.atttypmod), a.attcollation::bigint) order by a.attnum) \
                from pg_attribute a where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped)), \
           's', jsonb_build_object('definition', w.ev_action::text, \
             'columns', (select jsonb_agg(jsonb_build_array(a.attname, a.atttypid::bigint, a.atttypmod, a.attcollation::bigint) order by a.attnum) \
                from pg_attribute a where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped))) \
         from pg_class c join pg_rewrite w on w.ev_class = c.oid and w.ev_type = '1' \
         where c.relkind in ('v', 'm') and c.relpersistence <> 't' and {}",
        head(
            "pg_class",
            "c.oid",
            "case c.relkind when 'm' then 'materialized_view' else 'view' end",
            &schema("c.relnamespace"),
            "c.relname"
        ),
        owner("c.relowner"),
        acl("c.relacl", 'r', "c.relowner"),
        made_by_user("pg_class", "c.oid"),
    )
}

fn sequences() -> String {
    format!(
        "select jsonb_build_object({}, {}, 'acl', {}, 'd', jsonb_build_object( \
           'type', format_type(q.seqtypid, null), 'start', q.seqstart, 'increment', q.seqincrement, 'min', q.seqmin, 'max', q.seqmax, \
           'cache', q.seqcache, 'cycle', q.seqcycle, 'persistence', c.relpersistence, 'owned_by', o.name), \
           's', jsonb_build_object('owned_by', o.column)) \
         from pg_class c join pg_sequence q on q.seqrelid = c.oid \
           left join lateral (select format('%I.%I.%I', {}, t.relname, a.attname) as name, jsonb_build_array(t.oid::bigint, a.attnum) as column \
             from pg_depend e join pg_class t on t.oid = e.refobjid join pg_attribute a on a.attrelid = t.oid and a.attnum = e.refobjsubid \
             where e.classid = 'pg_class'::regclass and e.objid = c.oid and e.refclassid = 'pg_class'::regclass and e.deptype = 'a') o on true \
         where c.relkind = 'S' and c.relpersistence <> 't' and {} \
           and not exists (select from pg_depend e where e.classid = 'pg_class'::regclass and e.objid = c.oid and e.deptype = 'i')",
        head("pg_class", "c.oid", "'sequence'", &schema("c.relnamespace"), "c.relname"),
        owner("c.relowner"),
        acl("c.relacl", 's', "c.relowner"),
        schema("t.relnamespace"),
        made_by_user("pg_class", "c.oid"),
    )
}

fn functions() -> String {
    format!(
        "select jsonb_build_object({}, {}, 'acl', {}, 'd', jsonb_build_object('arguments', pg_get_function_identity_arguments(p.oid), \
           'types', (select coalesce(string_agg(format_type(u.t, null), ', ' order by u.n), '') from unnest(p.proargtypes::oid[]) with ordinality as u(t, n)), \
           'prokind', p.prokind, 'result', pg_get_function_result(p.oid), 'argument_names', p.proargnames, 'defaults', p.pronargdefaults, \
           'extension_support', null, \
           'definition', case when p.prokind <> 'a' then pg_get_functiondef(p.oid) else (select format('CREATE AGGREGATE %I.%I(%s) (%s)', {}, p.proname, \
              case when g.aggkind = 'n' and p.pronargs = 0 then '*' else pg_get_function_arguments(p.oid) end, concat_ws(', ', \
              'SFUNC = ' || g.aggtransfn::regproc::text, 'STYPE = ' || format_type(g.aggtranstype, null), \
              'SSPACE = ' || nullif(g.aggtransspace, 0), 'INITCOND = ' || quote_literal(g.agginitval), \
              'FINALFUNC = ' || nullif(g.aggfinalfn::regproc::text, '-'), case when g.aggfinalextra then 'FINALFUNC_EXTRA' end, \
              case when g.aggfinalfn <> 0 and g.aggfinalmodify <> case when g.aggkind = 'n' then 'r' else 'w' end::\"char\" then 'FINALFUNC_MODIFY = ' || \
                case g.aggfinalmodify when 'r' then 'READ_ONLY' when 's' then 'SHAREABLE' else 'READ_WRITE' end end, \
              'COMBINEFUNC = ' || nullif(g.aggcombinefn::regproc::text, '-'), \
              'SERIALFUNC = ' || nullif(g.aggserialfn::regproc::text, '-'), 'DESERIALFUNC = ' || nullif(g.aggdeserialfn::regproc::text, '-'), \
              'MSFUNC = ' || nullif(g.aggmtransfn::regproc::text, '-'), 'MINVFUNC = ' || nullif(g.aggminvtransfn::regproc::text, '-'), \
              'MSTYPE = ' || case when g.aggmtranstype <> 0 then format_type(g.aggmtranstype, null) end, \
              'MSSPACE = ' || nullif(g.aggmtransspace, 0), 'MINITCOND = ' || quote_literal(g.aggminitval), \
              'MFINALFUNC = ' || nullif(g.aggmfinalfn::regproc::text, '-'), case when g.aggmfinalextra then 'MFINALFUNC_EXTRA' end, \
              'SORTOP = ' || case when g.aggsortop <> 0 then format('OPERATOR(%I.%s)', (select {} from pg_operator r where r.oid = g.aggsortop), \
                 (select r.oprname from pg_operator r where r.oid = g.aggsortop)) end, \
              'PARALLEL = ' || case p.proparallel when 's' then 'SAFE' when 'r' then 'RESTRICTED' else 'UNSAFE' end, \
              case when g.aggkind = 'h' then 'HYPOTHETICAL' end)) from pg_aggregate g where g.aggfnoid = p.oid) end), \
           's', jsonb_build_object('definition', to_jsonb(p) - 'oid' - 'proname' - 'pronamespace' - 'proowner' - 'proacl', \
             'aggregate', (select to_jsonb(g) - 'aggfnoid' from pg_aggregate g where g.aggfnoid = p.oid), \
             'result', p.prorettype::bigint)) \
         from pg_proc p where {} and not exists (select from pg_depend e where e.classid = 'pg_proc'::regclass and e.objid = p.oid and e.deptype = 'i')",
        head("pg_proc", "p.oid", "'function'", &schema("p.pronamespace"), "p.proname"),
        owner("p.proowner"),
        acl("p.proacl", 'f', "p.proowner"),
        schema("p.pronamespace"),
        schema("r.oprnamespace"),
        made_by_user("pg_proc", "p.oid"),
    )
}

fn triggers() -> String {
    format!(
        "select jsonb_build_object({}, 'parent', jsonb_build_array('pg_class', t.tgrelid::bigint, 0), \
           'd', jsonb_build_object('definition', pg_get_triggerdef(t.oid), 'enabled', t.tgenabled), \
           's', jsonb_build_object('definition', to_jsonb(t) - 'oid' - 'tgname' - 'tgenabled' - 'tgconstraint' - 'tgconstrindid')) \
         from pg_trigger t where not t.tgisinternal and t.tgparentid = 0 and {}",
        head("pg_trigger", "t.oid", "'trigger'", "null", "t.tgname"),
        made_by_user("pg_trigger", "t.oid"),
    )
}

fn rules() -> String {
    format!(
        "select jsonb_build_object({}, 'parent', jsonb_build_array('pg_class', w.ev_class::bigint, 0), \
           'd', jsonb_build_object('definition', pg_get_ruledef(w.oid), 'enabled', w.ev_enabled), \
           's', jsonb_build_object('definition', to_jsonb(w) - 'oid' - 'rulename' - 'ev_enabled')) \
         from pg_rewrite w where w.rulename <> '_RETURN' and {}",
        head("pg_rewrite", "w.oid", "'rule'", "null", "w.rulename"),
        made_by_user("pg_rewrite", "w.oid"),
    )
}

fn policies() -> String {
    format!(
        "select jsonb_build_object({}, 'parent', jsonb_build_array('pg_class', p.polrelid::bigint, 0), \
           'd', jsonb_build_object('permissive', p.polpermissive, 'command', p.polcmd, \
             'roles', (select string_agg(case when r = 0 then 'PUBLIC' else quote_ident(pg_get_userbyid(r)) end, ', ') from unnest(p.polroles) r), \
             'using', pg_get_expr(p.polqual, p.polrelid), 'check', pg_get_expr(p.polwithcheck, p.polrelid)), \
           's', jsonb_build_object('using', p.polqual::text, 'check', p.polwithcheck::text)) \
         from pg_policy p where {}",
        head("pg_policy", "p.oid", "'policy'", "null", "p.polname"),
        made_by_user("pg_policy", "p.oid"),
    )
}

fn statistics() -> String {
    format!(
        "select jsonb_build_object({}, {}, 'd', jsonb_build_object('definition', pg_get_statisticsobjdef(x.oid), \
             'target', coalesce((to_jsonb(x) ->> 'stxstattarget')::int, -1)), \
           's', jsonb_build_object('definition', to_jsonb(x) - 'oid' - 'stxname' - 'stxnamespace' - 'stxowner' - 'stxstattarget')) \
         from pg_statistic_ext x where {}",
        head("pg_statistic_ext", "x.oid", "'statistics'", &schema("x.stxnamespace"), "x.stxname"),
        owner("x.stxowner"),
        made_by_user("pg_statistic_ext", "x.oid"),
    )
}

fn collations() -> String {
    format!(
        "select jsonb_build_object({}, {}, 'd', jsonb_build_object('options', concat_ws(', ', \
             'provider = ' || case l.collprovider when 'i' then 'icu' when 'b' then 'builtin' else 'libc' end, \
             'locale = ' || quote_literal(coalesce(to_jsonb(l) ->> 'colliculocale', to_jsonb(l) ->> 'colllocale')), \
             'rules = ' || quote_literal(to_jsonb(l) ->> 'collicurules'), 'lc_collate = ' || quote_literal(l.collcollate), 'lc_ctype = ' || quote_literal(l.collctype), \
             case when not l.collisdeterministic then 'deterministic = false' end))) \
         from pg_collation l where {}",
        head("pg_collation", "l.oid", "'collation'", &schema("l.collnamespace"), "l.collname"),
        owner("l.collowner"),
        made_by_user("pg_collation", "l.oid"),
    )
}

fn casts() -> String {
    let name = "format('%s AS %s', format_type(k.castsource, null), format_type(k.casttarget, null))";
    format!(
        "select jsonb_build_object({}, 'd', jsonb_build_object('how', case k.castmethod when 'b' then 'WITHOUT FUNCTION' when 'i' then 'WITH INOUT' \
             else 'WITH FUNCTION ' || k.castfunc::regprocedure::text end || case k.castcontext when 'a' then ' AS ASSIGNMENT' when 'i' then ' AS IMPLICIT' else '' end), \
           's', jsonb_build_object('how', to_jsonb(k) - 'oid')) \
         from pg_cast k where {} and not exists (select from pg_depend e where e.classid = 'pg_cast'::regclass and e.objid = k.oid and e.deptype = 'i')",
        head("pg_cast", "k.oid", "'cast'", "null", name),
        made_by_user("pg_cast", "k.oid"),
    )
}

fn operators() -> String {
    format!(
        "select jsonb_build_object({}, {}, 'd', jsonb_build_object('arguments', \
             format('%s, %s', coalesce(format_type(nullif(o.oprleft, 0), null), 'NONE'), coalesce(format_type(nullif(o.oprright, 0), null), 'NONE')), \
             'options', concat_ws(', ', 'FUNCTION = ' || o.oprcode::regproc::text, 'LEFTARG = ' || format_type(nullif(o.oprleft, 0), null), \
             'RIGHTARG = ' || format_type(nullif(o.oprright, 0), null), \
             'COMMUTATOR = ' || (select format('OPERATOR(%I.%s)', {}, r.oprname) from pg_operator r where r.oid = o.oprcom), \
             'NEGATOR = ' || (select format('OPERATOR(%I.%s)', {}, r.oprname) from pg_operator r where r.oid = o.oprnegate), \
             'RESTRICT = ' || nullif(o.oprrest::regproc::text, '-'), 'JOIN = ' || nullif(o.oprjoin::regproc::text, '-'), \
             case when o.oprcanhash then 'HASHES' end, case when o.oprcanmerge then 'MERGES' end)), \
           's', jsonb_build_object('options', to_jsonb(o) - 'oid' - 'oprnamespace' - 'oprowner' - 'oprname')) \
         from pg_operator o where o.oprcode <> 0 and {}",
        head("pg_operator", "o.oid", "'operator'", &schema("o.oprnamespace"), "o.oprname"),
        owner("o.oprowner"),
        schema("r.oprnamespace"),
        schema("r.oprnamespace"),
        made_by_user("pg_operator", "o.oid"),
    )
}

fn event_triggers() -> String {
    format!(
        "select jsonb_build_object({}, {}, 'd', jsonb_build_object('enabled', v.evtenabled, 'definition', format('ON %s%s EXECUTE FUNCTION %s()', \
             v.evtevent, (select ' WHEN TAG IN (' || string_agg(quote_literal(t), ', ') || ')' from unnest(v.evttags) t), v.evtfoid::regproc)), \
           's', jsonb_build_object('definition', to_jsonb(v) - 'oid' - 'evtname' - 'evtowner' - 'evtenabled')) \
         from pg_event_trigger v where {}",
        head("pg_event_trigger", "v.oid", "'event_trigger'", "null", "v.evtname"),
        owner("v.evtowner"),
        made_by_user("pg_event_trigger", "v.oid"),
    )
}

fn publications() -> String {
    format!(
        "select jsonb_build_object({}, {}, 'd', jsonb_build_object('definition', case when p.puballtables then ' FOR ALL TABLES' else coalesce(' FOR ' || ( \
             select string_agg(x.part, ', ' order by x.part) from ( \
               select format('TABLE ONLY %s%s%s', r.prrelid::regclass, \
                 (select ' (' || string_agg(quote_ident(a.attname), ', ' order by a.attnum) || ')' from pg_attribute a \
                    where a.attrelid = r.prrelid and a.attnum = any (r.prattrs)), \
                 ' WHERE (' || pg_get_expr(r.prqual, r.prrelid) || ')') as part \
               from pg_publication_rel r where r.prpubid = p.oid \
               union all select format('TABLES IN SCHEMA %I', {}) from pg_publication_namespace s where s.pnpubid = p.oid) x), '') end \
             || format(' WITH (publish = %L, publish_via_partition_root = %L%s)', concat_ws(', ', case when p.pubinsert then 'insert' end, \
               case when p.pubupdate then 'update' end, case when p.pubdelete then 'delete' end, case when p.pubtruncate then 'truncate' end), case when p.pubviaroot then 'true' else 'false' end, \
               case when to_jsonb(p) ->> 'pubgencols' = 's' then ', publish_generated_columns = stored' else '' end)), \
           's', jsonb_build_object('definition', jsonb_build_array(to_jsonb(p) - 'oid' - 'pubname' - 'pubowner', \
             (select jsonb_agg(to_jsonb(r) - 'oid' order by r.prrelid) from pg_publication_rel r where r.prpubid = p.oid), \
             (select jsonb_agg(s.pnnspid::bigint order by s.pnnspid) from pg_publication_namespace s where s.pnpubid = p.oid)))) \
         from pg_publication p where {}",
        head("pg_publication", "p.oid", "'publication'", "null", "p.pubname"),
        owner("p.pubowner"),
        schema("s.pnnspid"),
        made_by_user("pg_publication", "p.oid"),
    )
}

fn default_privileges() -> String {
    let name = format!(
        "concat_ws(' ', 'FOR ROLE', quote_ident(pg_get_userbyid(f.defaclrole)), \
         'IN SCHEMA ' || quote_ident(nullif({}, '')), 'ON', case f.defaclobjtype when 'r' then 'TABLES' when 'S' then 'SEQUENCES' \
         when 'f' then 'FUNCTIONS' when 'T' then 'TYPES' when 'n' then 'SCHEMAS' else 'LARGE OBJECTS' end)",
        schema("f.defaclnamespace")
    );
    format!(
        "select jsonb_build_object({}, 'd', jsonb_build_object('prefix', format('FOR ROLE %I%s', pg_get_userbyid(f.defaclrole), \
             ' IN SCHEMA ' || quote_ident({})), 'objects', case f.defaclobjtype when 'r' then 'TABLES' when 'S' then 'SEQUENCES' \
             when 'f' then 'FUNCTIONS' when 'T' then 'TYPES' when 'n' then 'SCHEMAS' else 'LARGE OBJECTS' end, \
             'base', case when f.defaclnamespace = 0 then {} end, \
             'privileges', {})) \
         from pg_default_acl f where {}",
        head("pg_default_acl", "f.oid", "'default_privileges'", "null", &name),
        schema("f.defaclnamespace"),
        acl("null::aclitem[]", '?', "f.defaclrole")
            .replace("'?'", "case f.defaclobjtype when 'S' then 's'::\"char\" else f.defaclobjtype end"),
        acl("f.defaclacl", 'r', "f.defaclrole"),
        made_by_user("pg_default_acl", "f.oid"),
    )
}

fn foreign_servers() -> String {
    format!(
        "select jsonb_build_object({}, {}, 'acl', {}, 'd', jsonb_build_object('type', v.srvtype, 'version', v.srvversion, \
             'wrapper', (select quote_ident(w.fdwname) from pg_foreign_data_wrapper w where w.oid = v.srvfdw), 'foreign_options', v.srvoptions)) \
         from pg_foreign_server v where {}",
        head("pg_foreign_server", "v.oid", "'server'", "null", "v.srvname"),
        owner("v.srvowner"),
        acl("v.srvacl", 'S', "v.srvowner"),
        made_by_user("pg_foreign_server", "v.oid"),
    )
}

/// Which object depends on which: class, OID and part of both, and how.
pub(crate) fn dependencies() -> String {
    format!(
        "select jsonb_build_array(e.classid::regclass::text, e.objid::bigint, e.objsubid, e.refclassid::regclass::text, e.refobjid::bigint, \
           e.refobjsubid, e.deptype) \
         from pg_depend e where e.objid >= {FIRST_USER_OID} and e.refobjid <> 0 and e.deptype <> 'e'"
    )
}

/// Things that belong to another one so closely that they are one for us: rows' types, arrays, a view's rule, a constraint's
/// index, an identity's sequence, a publication's share in a table, a generated column's expression.
pub(crate) fn aliases() -> String {
    format!(
        "select jsonb_build_array('pg_type', t.oid::bigint, 'pg_class', t.typrelid::bigint, 0) from pg_type t join pg_class c on c.oid = t.typrelid \
           where t.oid >= {FIRST_USER_OID} and c.relkind <> 'c' \
         union all select jsonb_build_array('pg_type', t.typarray::bigint, 'pg_type', t.oid::bigint, 0) from pg_type t where t.oid >= {FIRST_USER_OID} and t.typarray <> 0 \
         union all select jsonb_build_array('pg_type', r.rngmultitypid::bigint, 'pg_type', r.rngtypid::bigint, 0) from pg_range r where r.rngtypid >= {FIRST_USER_OID} \
         union all select jsonb_build_array('pg_class', t.typrelid::bigint, 'pg_type', t.oid::bigint, 0) from pg_type t join pg_class c on c.oid = t.typrelid where c.relkind = 'c' \
         union all select jsonb_build_array('pg_rewrite', w.oid::bigint, 'pg_class', w.ev_class::bigint, 0) from pg_rewrite w where w.rulename = '_RETURN' and w.oid >= {FIRST_USER_OID} \
         union all select jsonb_build_array('pg_class', k.conindid::bigint, 'pg_constraint', k.oid::bigint, 0) from pg_constraint k \
           where k.contype in ('p', 'u', 'x') and k.oid >= {FIRST_USER_OID} \
         union all select jsonb_build_array('pg_class', e.objid::bigint, 'pg_class', e.refobjid::bigint, e.refobjsubid) from pg_depend e \
           join pg_class s on s.oid = e.objid and s.relkind = 'S' where e.classid = 'pg_class'::regclass and e.deptype = 'i' and e.refclassid = 'pg_class'::regclass \
         union all select jsonb_build_array('pg_publication_rel', r.oid::bigint, 'pg_publication', r.prpubid::bigint, 0) from pg_publication_rel r \
           where r.oid >= {FIRST_USER_OID} \
         union all select jsonb_build_array('pg_attrdef', f.oid::bigint, 'pg_class', f.adrelid::bigint, f.adnum) from pg_attrdef f \
           join pg_attribute a on a.attrelid = f.adrelid and a.attnum = f.adnum where a.attgenerated <> '' and f.oid >= {FIRST_USER_OID}"
    )
}

/// What no statement is written for, as `[kind, identity, content]`: a difference in it is named.
pub(crate) fn uncovered() -> String {
    let mut parts = Vec::new();
    for (class, kind) in [
        ("pg_opclass", "operator class"),
        ("pg_opfamily", "operator family"),
        ("pg_conversion", "conversion"),
        ("pg_ts_config", "text search configuration"),
        ("pg_ts_dict", "text search dictionary"),
        ("pg_ts_parser", "text search parser"),
        ("pg_ts_template", "text search template"),
        ("pg_transform", "transform"),
        ("pg_am", "access method"),
        ("pg_language", "language"),
        ("pg_foreign_data_wrapper", "foreign-data wrapper"),
    ] {
        parts.push(format!(
            "select jsonb_build_array('{kind}', (select i.identity from pg_identify_object('{class}'::regclass, x.oid, 0) i), md5(x::text)) \
             from {class} x where {}",
            made_by_user(class, "x.oid")
        ));
    }
    parts.push(format!(
        "select jsonb_build_array('type', format_type(t.oid, null), '') from pg_type t where t.typtype in ('b', 'p') and {} \
         and not exists (select from pg_depend e where e.classid = 'pg_type'::regclass and e.objid = t.oid and e.deptype = 'i')",
        made_by_user("pg_type", "t.oid")
    ));
    parts.push("select jsonb_build_array('text search mapping', m.mapcfg::regconfig::text || ' ' || m.maptokentype || ' ' || m.mapseqno, m.mapdict::regdictionary::text) \
         from pg_ts_config_map m where m.mapcfg >= 16384".to_owned());
    parts.push("select jsonb_build_array('role', r.rolname, md5((to_jsonb(r) - 'oid')::text)) from pg_roles r where r.rolname !~ '^pg_'".to_owned());
    parts.push("select jsonb_build_array('role membership', pg_get_userbyid(m.member) || ' in ' || pg_get_userbyid(m.roleid), concat_ws(' ', m.admin_option, to_jsonb(m) ->> 'inherit_option', to_jsonb(m) ->> 'set_option')) \
         from pg_auth_members m where m.member >= 16384 or m.roleid >= 16384".to_owned());
    parts.push("select jsonb_build_array('setting of a database or role', concat_ws(' ', (select datname from pg_database d where d.oid = s.setdatabase), \
         case when s.setrole <> 0 then pg_get_userbyid(s.setrole) end), s.setconfig::text) from pg_db_role_setting s".to_owned());
    // Since 18 what makes a column not null is a constraint, and can be less than whole.
    parts.push("select jsonb_build_array('not-null constraint', (select i.identity from pg_identify_object('pg_constraint'::regclass, k.oid, 0) i), \
         concat_ws(' ', k.convalidated, k.connoinherit)) from pg_constraint k where k.contype = 'n' and k.conrelid <> 0 and (not k.convalidated or k.connoinherit)".to_owned());
    parts.push("select jsonb_build_array('tablespace', t.spcname, '') from pg_tablespace t".to_owned());
    parts.push("select jsonb_build_array('property of the database', 'owner, privileges, limits', jsonb_build_array(pg_get_userbyid(d.datdba), d.datacl, d.datconnlimit, \
         shobj_description(d.oid, 'pg_database'))::text) from pg_database d where d.datname = current_database()".to_owned());
    parts.push(
        "select jsonb_build_array('user mapping', m.srvname || ' for ' || m.usename, '') from pg_user_mappings m"
            .to_owned(),
    );
    parts.push("select jsonb_build_array('subscription', s.subname, '') from pg_subscription s where s.subdbid = (select oid from pg_database where datname = current_database())".to_owned());
    parts.push("select jsonb_build_array('security label', concat_ws(' ', l.objtype, l.objname, l.provider), l.label) from pg_seclabels l".to_owned());
    parts.push(format!(
        "select jsonb_build_array('privileges of an extension''s member', (select i.identity from pg_identify_object(p.classoid, p.objoid, p.objsubid) i), \
           md5(coalesce((select c.relacl from pg_class c where p.classoid = 'pg_class'::regclass and c.oid = p.objoid), \
            (select f.proacl from pg_proc f where p.classoid = 'pg_proc'::regclass and f.oid = p.objoid))::text)) \
         from pg_init_privs p where p.objoid >= {FIRST_USER_OID}"
    ));
    parts.join(" union all ")
}
