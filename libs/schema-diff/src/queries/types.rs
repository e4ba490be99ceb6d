//! Types of users: enums, domains, composite types and ranges.

use super::{acl, head, made_by_user, owner, schema};

pub(super) fn types() -> [String; 4] {
    let common = |kind: &str| {
        format!(
            "{}, {}, 'acl', {}",
            head("pg_type", "t.oid", kind, &schema("t.typnamespace"), "t.typname"),
            owner("t.typowner"),
            acl("t.typacl", 'T', "t.typowner")
        )
    };
    let user = made_by_user("pg_type", "t.oid");
    [
        format!(
            "select jsonb_build_object({}, \
               'd', jsonb_build_object('labels', (select jsonb_agg(e.enumlabel order by e.enumsortorder) from pg_enum e where e.enumtypid = t.oid)), \
               's', jsonb_build_object('labels', (select jsonb_agg(e.oid::bigint order by e.enumsortorder) from pg_enum e where e.enumtypid = t.oid))) \
             from pg_type t where t.typtype = 'e' and {user}",
            common("'enum'")
        ),
        format!(
            "select jsonb_build_object({}, 'd', jsonb_build_object('type', format_type(t.typbasetype, t.typtypmod), \
               'default', pg_get_expr(t.typdefaultbin, 'pg_type'::regclass), 'not_null', t.typnotnull, \
               'collation', (select format('%I.%I', {}, l.collname) from pg_collation l, pg_type b \
                             where l.oid = t.typcollation and b.oid = t.typbasetype and b.typcollation <> t.typcollation)), \
               's', jsonb_build_object('type', jsonb_build_array(t.typbasetype::bigint, t.typtypmod, t.typcollation::bigint), \
               'default', t.typdefaultbin::text)) \
             from pg_type t where t.typtype = 'd' and {user}",
            common("'domain'"),
            schema("l.collnamespace"),
        ),
        format!(
            "select jsonb_build_object({}, 'd', jsonb_build_object('attributes', coalesce((select jsonb_agg(jsonb_build_array(a.attnum, \
               quote_ident(a.attname), format_type(a.atttypid, a.atttypmod), \
               (select format('%I.%I', {}, l.collname) from pg_collation l, pg_type b \
                 where l.oid = a.attcollation and b.oid = a.atttypid and b.typcollation <> a.attcollation)) order by a.attnum) \
               from pg_attribute a where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped), '[]'), \
               'attribute_comments', (select jsonb_agg(jsonb_build_array(quote_ident(a.attname), col_description(c.oid, a.attnum)) order by a.attnum) \
               from pg_attribute a where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped and col_description(c.oid, a.attnum) is not null)), \
               's', jsonb_build_object('attributes', coalesce((select jsonb_agg(jsonb_build_array(a.attnum, a.attname, a.atttypid::bigint, \
               a.atttypmod, a.attcollation::bigint) order by a.attnum) \
               from pg_attribute a where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped), '[]'))) \
             from pg_type t join pg_class c on c.oid = t.typrelid where t.typtype = 'c' and c.relkind = 'c' and {user}",
            common("'composite'"),
            schema("l.collnamespace"),
        ),
        format!(
            "select jsonb_build_object({}, 'd', jsonb_build_object('options', concat_ws(', ', \
               'subtype = ' || format_type(r.rngsubtype, null), \
               'subtype_opclass = ' || (select format('%I.%I', {}, o.opcname) from pg_opclass o where o.oid = r.rngsubopc), \
               'collation = ' || (select format('%I.%I', {}, l.collname) from pg_collation l where l.oid = r.rngcollation), \
               'canonical = ' || nullif(r.rngcanonical::regproc::text, '-'), \
               'subtype_diff = ' || nullif(r.rngsubdiff::regproc::text, '-'), \
               'multirange_type_name = ' || format_type(r.rngmultitypid, null))), \
               's', jsonb_build_object('options', to_jsonb(r) - 'rngtypid' - 'rngmultitypid')) \
             from pg_type t join pg_range r on r.rngtypid = t.oid where t.typtype = 'r' and {user}",
            common("'range'"),
            schema("o.opcnamespace"),
            schema("l.collnamespace"),
        ),
    ]
}
