/* op.c - the op table, its schemas parsed once. The grammar is described in ops.def. */
#include "terra/op.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

tr_op_info tr__op_table[TR_OP_COUNT] = {
#define TR_OP(id_, expose_, class_, rule_, vjp_, schema_)                                               \
    [TR_OP_##id_] = {.name = #id_, .schema = schema_, .op_class = TR_CLASS_##class_, .expose = TR_EXPOSE_##expose_, \
                     .differentiable = sizeof #vjp_ != sizeof "none" || #vjp_[0] != 'n' || #vjp_[1] != 'o'},
#include "terra/ops.def"
#undef TR_OP
};

static const struct {
    const char *type;
    tr_arg_kind kind;
    uint8_t slots;
} types[] = {
    {"Tensor[]", TR_ARG_TENSORS, 0}, {"Tensor", TR_ARG_TENSOR, 0}, {"Operand", TR_ARG_OPERAND, 0},
    {"Scalar", TR_ARG_SCALAR, 0},    {"Generator", TR_ARG_GENERATOR, 0}, {"int[2]", TR_ARG_INT, 2},
    {"int", TR_ARG_INT, 1},          {"bool", TR_ARG_BOOL, 1},     {"dims", TR_ARG_DIMS, 1},
    {"dim", TR_ARG_DIM, 1},          {"dtype", TR_ARG_DTYPE, 1},   {"one_of", TR_ARG_ONE_OF, 1},
    {"sizes", TR_ARG_SIZES, 1 + TR_MAX_DIMS},
};

static tr_status bad(const tr_op_info *info, const char *what) {
    return TR_FAIL(TR_E_INTERNAL, "ops.def: %s: malformed %s in \"%s\"", info->name, what, info->schema);
}

/* "Tensor?!", "one_of(a,b)", "dims" into the parameter. */
static tr_status parse_type(tr_op_info *info, char *type, tr_param *p) {
    size_t n = strlen(type);
    while (n && (type[n - 1] == '?' || type[n - 1] == '!')) {
        *(type[n - 1] == '?' ? &p->optional : &p->written) = true;
        type[--n] = 0;
    }
    char *open = strchr(type, '(');
    if (open) {
        char *close = strchr(open, ')');
        if (!close)
            return bad(info, "type");
        *close = 0;
        snprintf(p->choices, sizeof p->choices, "%s", open + 1);
        *open = 0;
    }
    for (size_t i = 0; i < sizeof types / sizeof *types; i++)
        if (strcmp(type, types[i].type) == 0) {
            p->kind = types[i].kind;
            p->slots = types[i].slots;
            return TR_OK;
        }
    return bad(info, "type");
}

static tr_status parse_param(tr_op_info *info, char *text, bool keyword_only) {
    if (info->n_params == sizeof info->params / sizeof *info->params)
        return bad(info, "parameter list");
    tr_param *p = &info->params[info->n_params++];
    char *space = strchr(text, ' ');
    if (!space)
        return bad(info, "parameter");
    *space = 0;
    char *name = space + 1;
    char *equals = strchr(name, '=');
    if (equals) {
        *equals = 0;
        p->has_default = true;
        snprintf(p->value, sizeof p->value, "%s", equals + 1);
    }
    snprintf(p->name, sizeof p->name, "%s", name);
    p->keyword_only = keyword_only;
    TR_TRY(parse_type(info, text, p));
    if (p->kind == TR_ARG_TENSORS) {
        info->variadic = true;
        p->at = info->n_operands;
    } else if (p->slots) {
        p->at = info->n_attrs;
        info->n_attrs = (uint8_t) (info->n_attrs + p->slots);
    } else {
        if (p->kind == TR_ARG_GENERATOR)
            p->written = p->optional = true;
        p->at = info->n_operands++;
        uint16_t bit = (uint16_t) (1u << p->at);
        if (p->written)
            info->written |= bit;
        if (p->kind == TR_ARG_GENERATOR)
            info->generators |= bit;
        else if (!p->optional)
            *(p->kind == TR_ARG_TENSOR ? &info->needs_tensor : &info->needs_value) |= bit;
    }
    return TR_OK;
}

static tr_status parse(tr_op_info *info) {
    char text[512];
    snprintf(text, sizeof text, "%s", info->schema);
    int outputs = 1;
    char *policy = strstr(text, " @");
    if (policy) {
        info->autocast = strcmp(policy, " @lower") == 0     ? TR_AUTOCAST_LOWER
                         : strcmp(policy, " @float32") == 0 ? TR_AUTOCAST_FLOAT32
                                                            : TR_AUTOCAST_NONE;
        if (info->autocast == TR_AUTOCAST_NONE)
            return bad(info, "autocast policy");
        *policy = 0;
    }
    char *arrow = strstr(text, " -> ");
    if (arrow) {
        outputs = atoi(arrow + 4);
        *arrow = 0;
    }
    bool keyword_only = false;
    int depth = 0;
    char *start = text;
    for (char *c = text;; c++) {
        depth += (*c == '(') - (*c == ')');
        if (*c != 0 && !(*c == ',' && depth == 0))
            continue;
        bool last = *c == 0;
        *c = 0;
        while (*start == ' ')
            start++;
        if (strcmp(start, "*") == 0)
            keyword_only = true;
        else if (*start)
            TR_TRY(parse_param(info, start, keyword_only));
        start = c + 1;
        if (last)
            break;
    }
    // An op that writes an operand other than a generator has no results of its own.
    bool writes = false;
    for (int i = 0; i < info->n_params; i++)
        writes |= info->params[i].written && info->params[i].kind != TR_ARG_GENERATOR && info->params[i].at == 0;
    info->n_outputs = (uint8_t) (writes ? 0 : outputs);
    return info->n_attrs > TR_MAX_ATTRS || info->n_operands > TR_MAX_FIXED ? bad(info, "size") : TR_OK;
}

tr_status tr_op_init(void) {
    static bool done;
    for (int i = 0; i < TR_OP_COUNT && !done; i++)
        TR_TRY(parse(&tr__op_table[i]));
    done = true;
    return TR_OK;
}
