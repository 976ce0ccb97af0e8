#include "tests/support/gloo_ranks.h"

#include <arpa/inet.h>
#include <sys/socket.h>
#include <unistd.h>

#include <thread>

namespace limbeck::test {

uint16_t free_port() {
  const int socket = ::socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof(address);
  ::bind(socket, reinterpret_cast<sockaddr*>(&address), length);
  ::getsockname(socket, reinterpret_cast<sockaddr*>(&address), &length);
  ::close(socket);
  return ntohs(address.sin_port);
}

std::vector<std::string> run_gloo_ranks(
    int size, const std::function<void(std::unique_ptr<parallel::Communicator>, const parallel::Meeting&)>& body) {
  parallel::GlooOptions options;
  options.size = size;
  options.first_timeout_s = options.timeout_s = 60;
  return run_gloo_ranks(options, body);
}

std::vector<std::string> run_gloo_ranks(
    parallel::GlooOptions options,
    const std::function<void(std::unique_ptr<parallel::Communicator>, const parallel::Meeting&)>& body) {
  options.host = "127.0.0.1";
  options.port = free_port();
  std::vector<std::string> thrown(static_cast<size_t>(options.size));
  {
    std::vector<std::jthread> threads;
    for (int rank = 0; rank < options.size; ++rank) {
      threads.emplace_back([&, rank] {
        try {
          parallel::GlooOptions own = options;
          own.rank = rank;
          const parallel::Meeting meeting = parallel::meet(own);
          body(parallel::make_gloo(own, meeting), meeting);
        } catch (const std::exception& error) {
          thrown[static_cast<size_t>(rank)] = error.what();
        }
      });
    }
  }
  return thrown;
}

}  // namespace limbeck::test
