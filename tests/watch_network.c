// Preloaded into a program under test: writes every name that it looks up and every address that it connects to.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

static void seen(const char *what, const char *name) {
    char line[512];
    const char *log = getenv("WATCH_LOG");
    int length = snprintf(line, sizeof line, "%s %s\n", what, name ? name : "");
    int file = log ? open(log, O_WRONLY | O_CREAT | O_APPEND, 0600) : -1;
    if (file >= 0) {
        if (write(file, line, length) < 0) abort();
        close(file);
    }
}

// An address in digits asks nobody.
int getaddrinfo(const char *node, const char *service, const struct addrinfo *hints, struct addrinfo **result) {
    int (*real)(const char *, const char *, const struct addrinfo *, struct addrinfo **) = dlsym(RTLD_NEXT, "getaddrinfo");
    struct addrinfo numeric = {0};
    if (hints) numeric = *hints;
    numeric.ai_flags |= AI_NUMERICHOST;
    if (real(node, service, &numeric, result) == 0) return 0;
    seen("getaddrinfo", node);
    return EAI_NONAME;
}

struct hostent *gethostbyname(const char *name) {
    seen("gethostbyname", name);
    return NULL;
}

int connect(int socket, const struct sockaddr *address, socklen_t length) {
    int (*real)(int, const struct sockaddr *, socklen_t) = dlsym(RTLD_NEXT, "connect");
    if (address->sa_family == AF_INET || address->sa_family == AF_INET6) seen("connect", "");
    return real(socket, address, length);
}
