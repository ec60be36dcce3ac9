/* A number for each thread: the highest rank of what it holds (lock_ranks.pyx). */
#ifndef XTREE_THREAD_RANK_H
#define XTREE_THREAD_RANK_H

#if defined(_MSC_VER)
#define XT_THREAD_LOCAL __declspec(thread)
#else
#define XT_THREAD_LOCAL _Thread_local
#endif

static XT_THREAD_LOCAL int xt_thread_rank = 0;

#endif
